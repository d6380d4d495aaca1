"""The models that a worker has loaded, and the choice of the worker that should load one."""
