"""Reasons why a model does not load, in words that an operator can act on."""

from __future__ import annotations

from modelmill.catalogue import ModelEntry
from modelmill.errors import ErrorCode, ModelmillError


def load_failed(entry: ModelEntry, reason: str) -> ModelmillError:
    """``model_load_failed`` for this entry. Callers see the reason: no path of the server belongs in it."""
    return ModelmillError(ErrorCode.MODEL_LOAD_FAILED, f"Model {entry.name}: {reason}")


def module_missing(entry: ModelEntry, module: str | None, extras: tuple[str, ...] = ()) -> ModelmillError:
    """A Python package is not installed; names the extras of this distribution that bring it."""
    wanted = ",".join(extras or entry.requires)
    command = f"pip install 'modelmill[{wanted}]'" if wanted else "install it where the worker runs"
    if entry.source and entry.source.install and module == entry.source.package:
        command = f"pip install {entry.source.install}"
    return load_failed(entry, f"the Python package {module or 'it needs'} is not installed: {command}")
