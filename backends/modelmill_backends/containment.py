"""A model's folder names only files of its own: a downloaded folder must not open other files."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from modelmill.catalogue import ModelEntry
from modelmill_backends.failures import load_failed

WEIGHTS = ".safetensors"
INDEX = "*.safetensors.index*.json"
MAX_INDEX_BYTES = 64_000_000
"""The index of the largest published models has a few megabytes."""


def check_folder(entry: ModelEntry, folder: Path) -> None:
    """Checks the indexes of weights in a model's folder and in the folders in it.

    Raises:
        ModelmillError: ``model_load_failed``: an index names a file that is not a safetensors file in its own
            folder, or that is a link out of the model's folder.
    """
    for one in (folder, *_folders(folder)):
        for index in one.glob(INDEX):
            _check_index(entry, index, folder)


def inside(entry: ModelEntry, folder: Path, path: Any) -> Path:
    """The part of a model's folder that one of its files names.

    Raises:
        ModelmillError: ``model_load_failed``: ``path`` leads out of the folder.
    """
    part = Path(str(path))
    if part.is_absolute() or ".." in part.parts:
        raise load_failed(entry, f"it names a path outside of its folder: {str(path)[:100]!r}")
    return folder / part


def _folders(folder: Path) -> Iterator[Path]:
    """The parts of a pipeline or an encoder. Hidden folders belong to tools."""
    for one in folder.iterdir():
        if not one.name.startswith(".") and one.is_dir():
            yield one


def _check_index(entry: ModelEntry, index: Path, folder: Path) -> None:
    name = _named(index, folder)
    if index.stat().st_size > MAX_INDEX_BYTES:
        raise load_failed(entry, f"its index {name} is too large")
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
        shards = set(content["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError):
        raise load_failed(entry, f"its index {name} is damaged") from None
    for shard in shards:
        says = f"its index {name} names {str(shard)[:100]!r}"
        if not isinstance(shard, str) or Path(shard).name != shard or "\\" in shard or "\0" in shard:
            raise load_failed(entry, f"{says}, which is no file in its folder")
        if not shard.endswith(WEIGHTS):
            raise load_failed(entry, f"{says}; only {WEIGHTS} files are read, never pickles")
        if not (index.parent / shard).is_file():
            raise load_failed(entry, f"{says}, which is missing")
        if not _is_inside(index.parent / shard, folder):
            raise load_failed(entry, f"{says}, which is a link out of the folder; copy the file there")


def _is_inside(file: Path, folder: Path) -> bool:
    target = file.resolve()
    if target.is_relative_to(folder.resolve()):
        return True
    # The hub's cache keeps a snapshot as links to the files in its folder "blobs".
    snapshots = next((one for one in (folder, *folder.parents) if one.parent.name == "snapshots"), None)
    return snapshots is not None and target.parent == (snapshots.parent.parent / "blobs").resolve()


def _named(file: Path, folder: Path) -> str:
    return str(file.relative_to(folder))[:100]
