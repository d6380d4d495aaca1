"""Modelmill: AI jobs over HTTP, queued, and run in batches on workers pinned to GPUs."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("modelmill")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"
