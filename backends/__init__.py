"""The runners, by runtime, and their use from Python without a server.

``backends.load("minilm")`` gives a model, ``backends.list_models()`` the names that it takes. Nothing here
imports a runtime before a model is loaded.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from backends.loader import LoadedModel, list_models, load

__all__ = ["LoadedModel", "list_models", "load"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    # Whoever looks for a runner only need not pay for reading the catalogue's and the contracts' code.
    from backends import loader

    return getattr(loader, name)
