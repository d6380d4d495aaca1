"""Files that are made once from other files and kept: ONNX exports, embeddings of fixed labels.

An artifact is a folder that is complete or absent: it is made under another name, flushed to the disk
and renamed. A lock keeps two workers from making the same artifact at the same time.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from modelmill.catalogue import ModelEntry
from modelmill_backends.failures import load_failed

logger = logging.getLogger(__name__)


def fingerprint(path: Path, *parts: object) -> str:
    """A hash of the files at or below ``path`` (path, size, time of change) and of ``parts``.

    The contents are not read: hashing gigabytes at each start would take longer than the load.
    """
    digest = hashlib.sha256(repr(parts).encode())
    path = path.resolve()
    if not path.is_dir():
        digest.update(_line(str(path), path.stat()))
        return digest.hexdigest()[:24]
    for file in sorted(_files(path), key=lambda file: Path(file).parts):
        # A hub's snapshot consists of links to its blobs. The blobs may change, not the links.
        real = str(Path(file).resolve()) if file.is_symlink() else file.path
        digest.update(_line(real, file.stat()))
    return digest.hexdigest()[:24]


def _files(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    # Several times as fast as Path.rglob. Every load runs this.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.is_file():
                yield entry


def _line(path: str, status: os.stat_result) -> bytes:
    return f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode()


def made_once(entry: ModelEntry, folder: Path, make: Callable[[Path], None]) -> Path:
    """Returns ``folder``; if it does not exist yet, ``make`` fills it first.

    Args:
        entry: The model that needs the artifact, for messages.
        folder: Where the artifact belongs; its name holds a fingerprint of everything that it is made from.
        make: Writes the files into the empty folder that it gets.

    Raises:
        ModelmillError: ``model_load_failed`` when the cache cannot be written; also what ``make`` raises.
    """
    if folder.exists():
        return folder
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            if not folder.exists():
                _make(folder, make)
    except OSError as error:
        logger.exception("model %s: cannot write %s", entry.name, folder)
        raise load_failed(
            entry,
            f"the cache folder cannot be written ({error.strerror}); "
            "set MODELMILL_CACHE_DIR to a folder that can be written",
        ) from error
    return folder


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    prefix = f".{folder.name}-"
    for left_over in folder.parent.glob(f"{prefix}*"):
        # The process that made it was killed: no other process makes this artifact while we have the lock.
        shutil.rmtree(left_over, ignore_errors=True)
    unfinished = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        make(unfinished)
        for file in unfinished.iterdir():
            _flush(file)
        _flush(unfinished)
        unfinished.rename(folder)
        _flush(folder.parent)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _flush(path: Path) -> None:
    # Without this, a power cut can leave a folder with the new name and empty files.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = folder.parent / f"{folder.name}.lock"
    with lock.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            logger.info("waiting for another worker that is making %s", folder.name)
            fcntl.flock(file, fcntl.LOCK_EX)
        # The kernel releases the lock when the file is closed, also when the process is killed.
        yield
