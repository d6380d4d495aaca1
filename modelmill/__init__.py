"""Modelmill: AI jobs over HTTP, queued, and run in batches on workers pinned to GPUs."""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelmill.client import AsyncClient as AsyncClient
    from modelmill.client import Client as Client

try:
    __version__ = version("modelmill")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> object:
    """``Client`` and ``AsyncClient``, loaded when they are asked for."""
    if name in ("AsyncClient", "Client"):
        from importlib import import_module

        return getattr(import_module("modelmill.client"), name)
    raise AttributeError(f"module 'modelmill' has no attribute {name!r}")
