"""One run over a model's queue: claim, prepare, batch, run, settle."""
