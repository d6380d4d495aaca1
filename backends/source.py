"""Finds an entry's weights: a hub repository, a local folder or an installed package, as one path."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path

from backends.failures import load_failed, module_missing
from modelmill.catalogue import ModelEntry, Source

logger = logging.getLogger(__name__)

SETTINGS_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""What a hub repository is asked for beside weights: configurations and tokenizers."""


def locate(entry: ModelEntry, weights: Sequence[str] = ("*.safetensors",)) -> Path:
    """The folder or file that holds the entry's weights.

    Args:
        entry: The catalogue entry.
        weights: Patterns of weight files to fetch, where the source is a hub repository.

    Raises:
        ModelmillError: ``model_load_failed``: no source, missing package or folder, hub out of reach.
    """
    source = entry.source
    if source is None:
        raise load_failed(entry, "its catalogue entry has no source")
    if source.hub is not None:
        return _from_hub(entry, source, weights)
    if source.package is not None:
        return _from_package(entry, source)
    folder = source.folder
    if folder is None or not folder.exists():
        logger.error("model %s: %s does not exist", entry.name, folder)
        raise load_failed(entry, "the folder that its catalogue entry names as source does not exist")
    return folder


def _from_package(entry: ModelEntry, source: Source) -> Path:
    name = source.package or ""
    try:
        # Looked up and not imported: such packages import whole frameworks.
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise module_missing(entry, name)
    path = Path(spec.submodule_search_locations[0], source.path or "")
    if not path.exists():
        raise load_failed(entry, f"the installed package {name} holds no {source.path}")
    return path


def _from_hub(entry: ModelEntry, source: Source, weights: Sequence[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import LocalEntryNotFoundError
    except ModuleNotFoundError as error:
        raise module_missing(entry, error.name, ("transformers",)) from None
    if source.revision is None:
        logger.warning("model %s: source.revision is not pinned, so the weights may change", entry.name)
    try:
        return Path(
            snapshot_download(
                source.hub or "",
                revision=source.revision,
                allow_patterns=[*SETTINGS_FILES, *weights],
            )
        )
    except LocalEntryNotFoundError as error:
        logger.error("model %s: %s", entry.name, error)
        raise load_failed(
            entry,
            f"{source.hub} is not in the local cache and the Hugging Face hub cannot be reached. "
            "Load it once with a connection, or point source.folder at a copy",
        ) from None
    except Exception as error:
        # The hub's client raises its own and its HTTP library's errors alike.
        logger.exception("model %s: fetching %s failed", entry.name, source.hub)
        raise load_failed(
            entry, f"{source.hub} cannot be fetched from the Hugging Face hub: {type(error).__name__}"
        ) from error
