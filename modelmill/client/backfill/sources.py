"""Opens the input of a backfill: files with rows, folders, patterns, pipes, or the rows of a program."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from modelmill.client.backfill.files import FileRows
from modelmill.client.backfill.identity import difference as difference_of
from modelmill.client.backfill.pipes import PipeRows
from modelmill.client.backfill.rows import Row, RowSource
from modelmill.client.backfill.tables import Reading, open_table
from modelmill.client.backfill.walk import find_files, split_pattern
from modelmill.errors import ConfigError
from modelmill.formats.encodings import InputError
from modelmill.formats.names import shown
from modelmill.formats.tables import Kind, kind_by_name, read_error

STDIN = "-"
MAX_TABLES = 10_000
"""The most files with rows that one pattern may match."""


class _Rows(RowSource):
    """Rows that a program passes. Only the caller knows whether they are the same next time."""

    is_of_caller = True

    def __init__(self, rows: Iterable[Mapping[str, Any]], key: str) -> None:
        super().__init__()
        self._rows = rows
        self._key = key
        self._total = len(rows) if isinstance(rows, Sequence) else None

    def fingerprint(self) -> dict[str, Any]:
        return {"rows": self._key}

    def firsts(self) -> list[Row]:
        if self._total is None:
            # An iterator yields each row only once, so the first row is put back.
            self._rows = iter(self._rows)
            head = list(islice(self._rows, 1))
            self._rows = chain(head, self._rows)
            return list(_Rows(head, "").rows(0))
        return super().firsts()

    def rows(self, start: int) -> Generator[Row, None, None]:
        for number, columns in enumerate(islice(self._rows, start, None), start):
            if not isinstance(columns, Mapping):
                raise ConfigError(f"row {number} is a {type(columns).__name__}; each row must be a mapping")
            sizes = (len(value) for value in columns.values() if isinstance(value, str | bytes))
            yield Row(number, columns, Path(), size_bytes=sum(sizes))

    def count(self) -> int | None:
        return self._total


class _Several(RowSource):
    """Several sources, one after the other. The numbers continue from one to the next."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        super().__init__()
        self._sources = sources
        self.is_files = all(source.is_files for source in sources)

    def fingerprint(self) -> dict[str, Any]:
        return {"inputs": [source.fingerprint() for source in self._sources]}

    def difference(self, noted: Mapping[str, Any], was_cut: bool) -> str:
        before = noted.get("inputs", ())
        if len(before) != len(self._sources):
            return difference_of(noted, self.fingerprint(), was_cut=False)
        pairs = list(zip(self._sources, before, strict=True))
        # If an earlier file grew, the rows after it would have other numbers.
        found = (source.difference(each, was_cut and each is before[-1]) for source, each in pairs)
        return next(filter(None, found), "")

    def prepare(self, folder: Path) -> None:
        for source in self._sources:
            source.prepare(folder)
            self.skipped += source.skipped

    def check(self, limit_bytes: int) -> int:
        size = 0
        for source in self._sources:
            size += source.check(limit_bytes - size)
        return size

    def firsts(self) -> list[Row]:
        return [row for source in self._sources for row in source.firsts()]

    def rows(self, start: int) -> Generator[Row, None, None]:
        before = 0
        for source in self._sources:
            seen = 0
            # The number of rows of all sources but the last must be known.
            for row in source.rows(max(0, start - before)):
                seen = row.number + 1
                row.number += before
                yield row
            before += seen or source.count() or 0

    def count(self) -> int | None:
        counts = [source.count() for source in self._sources]
        return None if None in counts else sum(count or 0 for count in counts)


def open_source(
    given: str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]],
    key: str = "",
    reading: Reading | None = None,
    output: str | Path | None = None,
) -> RowSource:
    """The source for paths and patterns, or for rows.

    Args:
        given: A file with rows (JSON, CSV, TSV, text, Parquet; all but Parquet also packed), a folder, a
            pattern such as ``photos/**/*.jpg``, ``-`` for standard input, several of them, or rows as
            mappings.
        key: A name for the rows, so that a run of them can be resumed.
        reading: How files are read.
        output: The folder of the results. What lies in it is no input.

    Raises:
        InputError: a file cannot be read, or does not say what it is.
        ConfigError: a path does not exist, or it is a Parquet file and pyarrow is not installed.
    """
    how, without = reading or Reading(), "" if output is None else os.path.realpath(output)
    if isinstance(given, str | Path):
        return _open_path(str(given), 0, how, without)
    if isinstance(given, Sequence) and given and all(isinstance(each, str | Path) for each in given):
        if [str(each) for each in given].count(STDIN) > 1:
            raise ConfigError("standard input can be read only once")
        sources = [_open_path(str(each), number, how, without) for number, each in enumerate(given)]
        return sources[0] if len(sources) == 1 else _Several(sources)
    return _Rows(given, key)  # type: ignore[arg-type]


def _open_path(text: str, number: int, reading: Reading, without: str) -> RowSource:
    if text == STDIN:
        return PipeRows(None, reading, number)
    path = Path(text)
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError) as error:
        if glob.has_magic(text):
            return _open_pattern(*split_pattern(text), number, reading, without)
        raise _missing(path, error) from None
    if stat.S_ISDIR(mode):
        if not os.access(path, os.R_OK | os.X_OK):
            raise InputError(f"{shown(text)}: the folder cannot be read: Permission denied")
        return _open_pattern(text, ["**"], number, reading, without)
    if stat.S_ISFIFO(mode) or text in ("/dev/stdin", "/dev/fd/0"):
        return PipeRows(path, reading, number)
    if not stat.S_ISREG(mode):
        raise InputError(f"{shown(text)} is neither a file nor a folder nor a pipe")
    table = open_table(path, reading, text, path.parent)
    # Otherwise a single image or sound.
    return table or FileRows(text.removesuffix(path.name), [glob.escape(path.name)], number)


def _missing(path: Path, error: OSError | ValueError) -> ConfigError:
    if isinstance(error, FileNotFoundError | ValueError) and not path.is_symlink():
        return ConfigError(f"there is no file or folder {shown(path)}")
    return read_error(error, shown(path)) if isinstance(error, OSError) else ConfigError(str(error))


def _open_pattern(base: str, parts: Sequence[str], number: int, reading: Reading, without: str) -> RowSource:
    """Files that match a pattern: each holds rows, if all their names say so; otherwise each is a row."""
    tables: list[str] = []
    skipped: list[tuple[str, str]] = []
    if reading.input_format is not Kind.FILES:

        def skip(path: str, reason: str) -> None:
            skipped.append((shown(path), reason))

        for name in find_files(base, parts, skip, without):
            if reading.input_format is None and kind_by_name(name) is None:
                tables.clear()
                break
            tables.append(name)
            if len(tables) > MAX_TABLES:
                raise ConfigError(
                    f"more than {MAX_TABLES:,} files with rows match: put them into fewer files"
                )
    found = [open_table(Path(name), reading, name, Path(name).parent) for name in tables]
    sources = [source for source in found if source is not None]
    if not sources or len(sources) < len(found):
        return FileRows(base, parts, number)
    sources[0].skipped = skipped
    return sources[0] if len(sources) == 1 else _Several(sources)
