"""A blob folder that refuses to be written, as a full disk does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def close(folder: Path) -> None:
    """Refuses new blobs from now on, also those of root and of processes that start later.

    What is there can be read.
    """
    partial = folder / "tmp"
    partial.rename(folder / "away")
    # A folder in which no process can make a file.
    partial.symlink_to("/dev/fd")


def reopen(folder: Path) -> None:
    (folder / "tmp").unlink()
    (folder / "away").rename(folder / "tmp")


@contextmanager
def unwritable(folder: Path) -> Iterator[None]:
    close(folder)
    try:
        yield
    finally:
        reopen(folder)
