"""The runners, by runtime. Nothing here imports a runtime before a model is loaded."""
