"""Finds files by a pattern, folder by folder and sorted, without a list of all files."""

from __future__ import annotations

import errno
import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import NamedTuple

Skip = Callable[[str, str], None]
"""Called with the path of an entry that is left out, and why."""
_SPECIAL = {
    stat.S_IFSOCK: "a socket",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def split_pattern(pattern: str) -> tuple[str, list[str]]:
    """Splits a pattern into its first folders, which have no wildcards, and the names below them."""
    parts = pattern.split("/")
    fixed = 0
    while fixed < len(parts) - 1 and not glob.has_magic(parts[fixed]):
        fixed += 1
    base = "/".join(parts[:fixed])
    return ("/" if pattern.startswith("/") and not base else base), parts[fixed:]


def find_files(base: str, parts: Sequence[str], skip: Skip, without: str = "") -> Iterator[str]:
    """The files below ``base`` that match, in the order of their names, folder by folder.

    ``*``, ``?`` and ``[…]`` match inside a name, ``**`` matches any number of folders. A name that begins
    with a dot matches only a part of the pattern that begins with a dot. Links to folders are followed, but
    not in circles. An entry that matches and is no file, such as a link to nothing, is skipped.
    So is the folder whose real path is ``without``.
    """
    real = os.path.realpath(base or ".")
    # Folders that are not read to their end, outermost first. They may be nested deeply.
    begun = [_entries(base, parts, _closed(parts, [0]), (real,), skip)]
    seen_before = "it leads back to a folder above it"
    while begun:
        found = next(begun[-1], None)
        if found is None:
            begun.pop()
        elif isinstance(found, str):
            yield found
        elif found.real[-1] in (without, *found.real[:-1]):
            skip(found.path, "the results are written there" if found.real[-1] == without else seen_before)
        else:
            begun.append(_entries(found.path, parts, found.places, found.real, skip))


class _Folder(NamedTuple):
    path: str
    places: frozenset[int]
    """How many parts of the pattern may be matched so far."""
    real: tuple[str, ...]
    """The real paths of the folders above, and its own."""


def _entries(
    folder: str, parts: Sequence[str], places: frozenset[int], above: tuple[str, ...], skip: Skip
) -> Iterator[str | _Folder]:
    """The files of a folder that match, and the folders in it that may hold some."""
    try:
        with os.scandir(folder or ".") as scanned:
            entries = sorted(scanned, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        skip(folder, f"the folder cannot be read: {error.strerror}")
        return
    for entry in entries:
        next_places = _step(parts, places, entry.name)
        path = os.path.join(folder, entry.name)  # noqa: PTH118 - a Path would remove "./"
        if not _is_folder(entry):
            if len(parts) in next_places:
                reason = _not_a_file(entry, path)
                if reason:
                    skip(path, reason)
                else:
                    yield path
        elif min(next_places, default=len(parts)) < len(parts):
            # A string only, because a call for each folder would be slow.
            real = os.path.realpath(path) if entry.is_symlink() else f"{above[-1].rstrip('/')}/{entry.name}"
            yield _Folder(path, next_places, (*above, real))


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # such as a link onto itself
        return False


def _not_a_file(entry: os.DirEntry[str], path: str) -> str:
    """Why an entry is no file that can be read; empty if it is one."""
    try:
        if entry.is_file():
            return ""
        kind = stat.S_IFMT(Path(path).stat().st_mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            return "a link onto itself"
        if entry.is_symlink() and error.errno in (errno.ENOENT, errno.ENOTDIR):
            return "a link to nothing"
        return str(error.strerror)
    return _SPECIAL.get(kind, "not a file")


def _step(parts: Sequence[str], places: frozenset[int], name: str) -> frozenset[int]:
    after = []
    for place in places:
        if place == len(parts) or (name.startswith(".") and not parts[place].startswith(".")):
            continue
        if parts[place] == "**":
            after.append(place)
        elif fnmatchcase(name, parts[place]):
            after.append(place + 1)
    return _closed(parts, after)


def _closed(parts: Sequence[str], places: Iterable[int]) -> frozenset[int]:
    """Adds the places that are reached if ``**`` matches no folder."""
    found = set(places)
    for place in sorted(found):
        while place < len(parts) and parts[place] == "**":
            place += 1
            found.add(place)
    return frozenset(found)
