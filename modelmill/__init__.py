"""Modelmill: AI jobs over HTTP, queued, and run in batches on workers pinned to GPUs.

``Client`` and ``AsyncClient`` talk to a server. ``load`` and ``list_models`` run a model in this process.
"""

from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from modelmill.client import AsyncClient as AsyncClient
    from modelmill.client import Client as Client
    from modelmill_backends.loader import list_models as list_models
    from modelmill_backends.loader import load as load
    from modelmill_tasks.item_warnings import InputWarning as InputWarning

_MODULES = {
    "AsyncClient": "modelmill.client",
    "Client": "modelmill.client",
    "InputWarning": "modelmill_tasks.item_warnings",
    "list_models": "modelmill_backends.loader",
    "load": "modelmill_backends.loader",
}

__all__ = ["AsyncClient", "Client", "InputWarning", "__version__", "list_models", "load"]

try:
    __version__ = version("modelmill")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0.0.0"


def __getattr__(name: str) -> object:
    """Imports a name's module when the name is first asked for: ``import modelmill`` stays cheap."""
    if name not in _MODULES:
        raise AttributeError(f"module 'modelmill' has no attribute {name!r}")
    from importlib import import_module

    from modelmill.extras import naming_extras

    with naming_extras():
        return getattr(import_module(_MODULES[name]), name)
