"""Finds files by a pattern, folder by folder and sorted, without a list of all files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase


def split_pattern(pattern: str) -> tuple[str, list[str]]:
    """Splits a pattern into its first folders, which have no wildcards, and the names below them."""
    parts = pattern.split("/")
    fixed = 0
    while fixed < len(parts) - 1 and not glob.has_magic(parts[fixed]):
        fixed += 1
    base = "/".join(parts[:fixed])
    return ("/" if pattern.startswith("/") and not base else base), parts[fixed:]


def find_files(base: str, parts: Sequence[str]) -> Iterator[str]:
    """The files below ``base`` that match, in the order of their names, folder by folder.

    ``*``, ``?`` and ``[…]`` match inside a name, ``**`` matches any number of folders. A name that begins
    with a dot matches only a part of the pattern that begins with a dot. Links to folders are followed, but
    not in circles.
    """
    yield from _descend(base, parts, _closed(parts, [0]), (os.path.realpath(base or "."),))


def _descend(
    folder: str, parts: Sequence[str], places: frozenset[int], above: tuple[str, ...]
) -> Iterator[str]:
    """``places``: how many parts may be matched so far; ``above``: real paths of the folders above."""
    try:
        with os.scandir(folder or ".") as entries:
            found = sorted((entry.name, entry.is_dir(), entry.is_symlink()) for entry in entries)
    except (PermissionError, FileNotFoundError, NotADirectoryError):
        return
    for name, is_folder, is_link in found:
        next_places = _step(parts, places, name)
        path = os.path.join(folder, name)  # noqa: PTH118 - a Path would remove "./"
        if not is_folder:
            if len(parts) in next_places:
                yield path
        elif min(next_places, default=len(parts)) < len(parts):
            target = os.path.realpath(path) if is_link else ""
            if target not in above:
                yield from _descend(path, parts, next_places, (*above, target) if target else above)


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
