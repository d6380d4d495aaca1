"""Loads models in the process of the test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from modelmill.catalogue import ModelEntry, Source
from modelmill_backends.device import Device
from modelmill_backends.loader import LoadedModel

ZERO_SHOT = "zero-shot-image-classification"
# PyTorch's threads wait for each other without releasing the core. If the core has other work, such small
# models take ten times as long with two threads as with one.
CPU = Device("cpu", 1)
OpenModel = Callable[..., LoadedModel]


def folder_entry(folder: Path, task: str, backend: str = "transformers", **fields: Any) -> ModelEntry:
    """An entry for a local folder."""
    return ModelEntry(
        name=fields.pop("name", "tiny-model"),
        backend=backend,
        source=Source(folder=folder),
        tasks=(task,),
        **fields,
    )
