"""Finds an entry's weights in a hub repository, a local folder or an installed package, as one path."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

from modelmill.catalogue import ModelEntry, Source
from modelmill_backends.containment import check_folder
from modelmill_backends.failures import load_failed, module_missing

logger = logging.getLogger(__name__)

SETTINGS_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files that are fetched from a hub repository in addition to weights: configurations and tokenizers."""
WEIGHT_FILES = ("*.safetensors", "*.onnx")
"""Files of weights that are safe to read."""


@dataclass
class _Fetching:
    """A load that only fetches files. It ends with those of ``hub``, the model's own repository."""

    hub: str | None
    folders: list[Path] = field(default_factory=list)


_fetching: ContextVar[_Fetching | None] = ContextVar("fetching", default=None)


class _LocatedError(BaseException):
    """Ends a load early. It is not an ``Exception``, because a load may catch those."""


def locate(entry: ModelEntry, weights: Sequence[str] = ("*.safetensors",)) -> Path:
    """The folder or file that holds the entry's weights.

    Args:
        entry: The catalogue entry.
        weights: Patterns of the weight files to fetch from a hub repository; empty: configurations only.

    Raises:
        ModelmillError: ``model_load_failed``: no source, a missing package or folder, an unreachable hub, or
            a folder that names files outside of itself.
    """
    source = entry.source
    if source is None:
        raise load_failed(entry, "its catalogue entry has no source")
    if source.hub is not None:
        folder = _from_hub(entry, source, weights)
        fetching = _fetching.get()
        if fetching is not None and weights:
            fetching.folders.append(folder)
            if source.hub == fetching.hub:
                raise _LocatedError
        if weights:
            check_folder(entry, folder)
        return folder
    if source.package is not None:
        return _from_package(entry, source)
    if source.folder is None or not source.folder.exists():
        logger.error("model %s: %s does not exist", entry.name, source.folder)
        raise load_failed(entry, "the folder that its catalogue entry names as source does not exist")
    if source.folder.is_dir():
        check_folder(entry, source.folder)
    return source.folder


def fetch(entry: ModelEntry, load: Callable[[], object]) -> list[Path]:
    """Runs a runner's ``load`` until it has fetched the files of the entry's hub repository, then stops it.

    Only the runner knows which files a load needs. A runner that needs several repositories asks for the
    entry's own repository last.

    Returns:
        The folders; the last is that of the entry's own repository.

    Raises:
        ModelmillError: as ``locate`` does.
    """
    fetching = _Fetching(entry.source.hub if entry.source else None)
    token = _fetching.set(fetching)
    try:
        load()
    except _LocatedError:
        pass
    finally:
        _fetching.reset(token)
    return fetching.folders


def is_at_hand(entry: ModelEntry) -> bool:
    """Whether the entry's files are on this machine. Does not ask a hub, so it may be wrong for one."""
    source = entry.source
    if source is None:
        return True
    if source.folder is not None:
        return source.folder.exists()
    if source.package is not None:
        return _in_package(source) is not None
    return _is_cached(source, ("*.safetensors",) if entry.backend == "transformers" else ())


def _is_cached(source: Source, weights: Sequence[str]) -> bool:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError:
        return False
    try:
        # Newer clients store a repository's list of files and refuse an incomplete snapshot.
        folder = snapshot_download(
            source.hub or "",
            revision=source.revision,
            allow_patterns=[*SETTINGS_FILES, *weights],
            local_files_only=True,
        )
    except Exception:
        # The snapshot is absent, or this user may not read the cache: both mean "not on this machine".
        return False
    return any(file.exists() for pattern in WEIGHT_FILES for file in Path(folder).rglob(pattern))


def _in_package(source: Source) -> Path | None:
    """The folder or file inside an installed package."""
    try:
        # Looked up and not imported: importing such a package imports a whole framework.
        spec = importlib.util.find_spec(source.package or "")
    except (ImportError, ValueError):
        spec = None
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(spec.submodule_search_locations[0], source.path or "")
    return path if path.exists() else None


def _from_package(entry: ModelEntry, source: Source) -> Path:
    path = _in_package(source)
    if path is not None:
        return path
    if _in_package(Source(package=source.package)) is None:
        raise module_missing(entry, source.package)
    raise load_failed(entry, f"the installed package {source.package} holds no {source.path}")


def _from_hub(entry: ModelEntry, source: Source, weights: Sequence[str]) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ModuleNotFoundError as error:
        raise module_missing(entry, error.name, ("transformers",)) from None
    if source.revision is None:
        logger.warning("model %s: source.revision is not pinned, so the weights may change", entry.name)
    if _fetching.get() is not None:
        _show_progress()
    try:
        return Path(
            snapshot_download(
                source.hub or "",
                revision=source.revision,
                allow_patterns=[*SETTINGS_FILES, *weights],
            )
        )
    except Exception as error:
        # The hub's client raises its own errors and those of its HTTP library.
        logger.error("model %s: fetching %s failed: %s", entry.name, source.hub, error)
        raise load_failed(entry, _why_not(source, error)) from error


def _show_progress() -> None:
    """Turns on the progress bars that a load turns off: the user waits for these files."""
    from huggingface_hub.constants import HF_HUB_DISABLE_PROGRESS_BARS
    from huggingface_hub.utils.tqdm import enable_progress_bars

    if not HF_HUB_DISABLE_PROGRESS_BARS:
        enable_progress_bars()


def _why_not(source: Source, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.LocalEntryNotFoundError):
        return (
            f"{source.hub} is not in the local cache and the Hugging Face hub cannot be reached. "
            "Load it once with a connection, or set source.folder to a copy"
        )
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{source.hub} requires that you accept its terms: accept them on its page at the "
            "Hugging Face hub, and set HF_TOKEN where it is loaded"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"the Hugging Face hub has no {source.hub}, or it is private and HF_TOKEN is not set"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{source.hub} has no revision {source.revision} at the Hugging Face hub"
    return f"{source.hub} cannot be fetched from the Hugging Face hub: {type(error).__name__}"
