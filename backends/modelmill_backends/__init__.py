"""The runners, by runtime. No module imports its runtime before a model is loaded.

Python code uses a model without a server through ``modelmill.load``; see ``modelmill_backends.loader``.
"""
