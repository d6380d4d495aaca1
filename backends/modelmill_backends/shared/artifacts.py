"""Files that are made once from others and kept: ONNX exports, embeddings of fixed labels.

An artifact is a folder that appears whole or not at all: it is made under another name, flushed to
the disk and renamed. A lock keeps two workers from making the same one at the same time.
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
    """Changes when a file at or below ``path`` does (path, size, time of change), or one of ``parts``.

    The contents are not read: hashing gigabytes at each start would cost more than the load.
    """
    digest = hashlib.sha256(repr(parts).encode())
    path = path.resolve()
    if not path.is_dir():
        digest.update(_line(str(path), path.stat()))
        return digest.hexdigest()[:24]
    for file in sorted(_files(path), key=lambda file: Path(file).parts):
        # A hub's snapshot is links to its blobs: what they point to is what may change.
        real = str(Path(file).resolve()) if file.is_symlink() else file.path
        digest.update(_line(real, file.stat()))
    return digest.hexdigest()[:24]


def _files(folder: str | Path) -> Iterator[os.DirEntry[str]]:
    # Several times as fast as Path.rglob, which each load would notice.
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _files(entry.path)
            elif entry.is_file():
                yield entry


def _line(path: str, status: os.stat_result) -> bytes:
    return f"{path}\0{status.st_size}\0{status.st_mtime_ns}\0".encode()


def made_once(entry: ModelEntry, folder: Path, make: Callable[[Path], None]) -> Path:
    """``folder``, filled by ``make`` if it does not exist yet.

    Args:
        entry: Whose artifact it is, for messages.
        folder: Where it belongs; its name holds a fingerprint of all that went in.
        make: Writes the files into the empty folder that it is given.

    Raises:
        ModelmillError: ``model_load_failed`` when the cache cannot be written, or as ``make`` raises.
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
            f"the cache folder cannot be written ({error.strerror}); set MODELMILL_CACHE_DIR to one that can",
        ) from error
    return folder


def _make(folder: Path, make: Callable[[Path], None]) -> None:
    prefix = f".{folder.name}-"
    for left_over in folder.parent.glob(f"{prefix}*"):
        # Its maker was killed: nobody else makes this artifact while we hold the lock.
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
    # Without this a power cut can leave the new name over empty files.
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
        # The kernel lets go of the lock when the file is closed, also by a process that is killed.
        yield
