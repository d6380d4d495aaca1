"""Rows of the input. They are read when they are needed: only a few are in memory at a time."""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from importlib import import_module
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from modelmill.client.backfill.walk import find_files, split_pattern
from modelmill.errors import ConfigError

MAX_LINE_BYTES = 96 * 1024 * 1024
"""The limit of a line of JSONL and of a value of CSV. A longer one is a failed row and is not kept."""
PARQUET_BATCH = 64
LOOKED_AT = 100
"""``first`` looks at this many rows for one that can be read."""
JSON_LINES = (".jsonl", ".ndjson", ".jsonl.gz", ".ndjson.gz")
CSV = (".csv", ".tsv", ".csv.gz", ".tsv.gz")


@dataclass(slots=True)
class Row:
    """One row of the input, and its state in the run."""

    number: int
    columns: Mapping[str, Any]
    folder: Path | None = None
    """The folder of relative paths in the columns; None: no path in the columns is read."""
    problem: str = ""
    """Why it cannot be read. Such a row has no columns."""
    size_bytes: int = 0
    """About how much memory it takes."""
    is_text: bool = False
    """Whether all values are text, as in CSV. They are read as the type of their field."""
    keep: dict[str, Any] = field(default_factory=dict)
    """Columns that are written next to the result."""
    failures: int = 0
    """Jobs of this row that failed and were submitted again."""
    lost: int = 0
    """Jobs of this row that the server no longer knew."""
    jobs: list[str] = field(default_factory=list)


class RowSource(ABC):
    """The origin of rows. Each row has a number, the same one each time that the source is read.

    Attributes:
        is_of_caller: Whether the rows come from the caller's code, which must not run in another thread.
        is_files: Whether each row is a file, in the column ``path``.
    """

    is_of_caller = False
    is_files = False

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """A value for JSON. A resumed run must have the same one."""

    @abstractmethod
    def rows(self, start: int) -> Generator[Row, None, None]:
        """The rows, starting with number ``start``."""

    def prepare(self, folder: Path) -> None:  # noqa: B027 - most sources have nothing to do
        """Called once, before the first row of a new or a resumed run, with the output's folder."""

    def first(self) -> Row | None:
        """The first of the ``LOOKED_AT`` first rows that can be read; None if none can."""
        with closing(self.rows(0)) as rows:
            return next((row for row in islice(rows, LOOKED_AT) if not row.problem), None)

    def count(self) -> int | None:
        """The number of rows; None if it is unknown. This may take a while."""
        return None


class _Lines(RowSource):
    def __init__(self, path: Path) -> None:
        self._path = path

    def fingerprint(self) -> dict[str, Any]:
        about = self._path.stat()
        return {"path": str(self._path.resolve()), "bytes": about.st_size, "modified_ns": about.st_mtime_ns}

    def rows(self, start: int) -> Generator[Row, None, None]:
        folder = self._path.parent
        for number, line in enumerate(islice(self._lines(), start, None), start):
            row = Row(number, {}, folder, size_bytes=len(line))
            try:
                columns = json.loads(line) if len(line) < MAX_LINE_BYTES else None
                if isinstance(columns, dict):
                    row.columns = columns
                else:
                    row.problem = "is not a JSON object" if columns is not None else "is too long"
            except (ValueError, RecursionError):
                row.problem = "is not valid JSON"
            yield row

    def count(self) -> int | None:
        return sum(1 for _ in self._lines())

    def _lines(self) -> Iterator[bytes]:
        with _opened(self._path) as file:
            while line := file.readline(MAX_LINE_BYTES):
                # Skip the rest of a line that is too long.
                rest = line
                while len(rest) == MAX_LINE_BYTES and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES)
                if not line.isspace():
                    yield line


class _Csv(RowSource):
    def __init__(self, path: Path) -> None:
        self._path = path

    fingerprint = _Lines.fingerprint

    def rows(self, start: int) -> Generator[Row, None, None]:
        folder = self._path.parent
        with self._text() as text:
            lines = self._records(text)
            names = next(lines, [])
            if len(set(names)) < len(names):
                raise ConfigError(f"{self._path}: two columns have the same name")
            for number, values in enumerate(islice(lines, start, None), start):
                row = Row(number, {}, folder, size_bytes=sum(map(len, values)), is_text=True)
                if len(values) > len(names):
                    row.problem = f"has {len(values)} values, but there are {len(names)} columns"
                else:
                    row.columns = dict(zip(names, values, strict=False))
                yield row

    def count(self) -> int | None:
        with self._text() as text:
            return max(0, sum(1 for _ in self._records(text)) - 1)

    def _text(self) -> io.TextIOWrapper:
        return io.TextIOWrapper(_opened(self._path), encoding="utf-8-sig", newline="")

    def _records(self, text: io.TextIOWrapper) -> Iterator[list[str]]:
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_BYTES))
        dialect = "excel-tab" if ".tsv" in self._path.suffixes else "excel"
        # The reader does not get the file itself, because its lines may have any length.
        reader = csv.reader(iter(lambda: text.readline(MAX_LINE_BYTES), ""), dialect)
        try:
            yield from filter(None, reader)
        except csv.Error as error:
            raise ConfigError(f"{self._path}, line {reader.line_num}: {error}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"{self._path} is not UTF-8") from None


class _Parquet(RowSource):
    def __init__(self, path: Path) -> None:
        self._path = path

    fingerprint = _Lines.fingerprint

    def rows(self, start: int) -> Generator[Row, None, None]:
        with self._file() as file:
            groups, skipped = list(range(file.metadata.num_row_groups)), 0
            while groups and start >= skipped + file.metadata.row_group(groups[0]).num_rows:
                skipped += file.metadata.row_group(groups.pop(0)).num_rows
            number = skipped
            for batch in file.iter_batches(PARQUET_BATCH, row_groups=groups) if groups else ():
                size = batch.nbytes // max(1, batch.num_rows)
                for columns in batch.to_pylist():
                    if number >= start:
                        yield Row(number, columns, self._path.parent, size_bytes=size)
                    number += 1

    def count(self) -> int | None:
        with self._file() as file:
            return int(file.metadata.num_rows)

    def _file(self) -> Any:
        return pyarrow_parquet().ParquetFile(self._path)


class _Files(RowSource):
    """Each file is a row. The list of files is written when the run begins."""

    is_files = True

    def __init__(self, base: str, parts: Sequence[str], number: int) -> None:
        self._base = base
        self._parts = parts
        self._name = f"files-{number}.list"
        self._list: Path | None = None
        self._count = 0

    def fingerprint(self) -> dict[str, Any]:
        return {"files": str(Path(self._base).resolve().joinpath(*self._parts))}

    def prepare(self, folder: Path) -> None:
        self._list = folder / self._name
        if self._list.exists():
            with self._list.open("rb") as file:
                self._count = sum(1 for _ in file)
            return
        # Renamed when it is whole: a run that was killed before that makes the list again.
        unfinished = self._list.with_suffix(".tmp")
        with unfinished.open("w", encoding="ascii") as file:
            for name in find_files(self._base, self._parts):
                file.write(json.dumps(name.removeprefix(self._base).lstrip("/")) + "\n")
                self._count += 1
        if not self._count:
            unfinished.unlink()
            raise ConfigError(f"no file matches {'/'.join(self._parts)} in {self._base or 'this folder'}")
        unfinished.rename(self._list)

    def rows(self, start: int) -> Generator[Row, None, None]:
        assert self._list is not None, "prepare comes first"
        with self._list.open(encoding="ascii") as file:
            for number, line in enumerate(islice(file, start, None), start):
                # As the user wrote it: a Path would remove "./".
                path = os.path.join(self._base, json.loads(line))  # noqa: PTH118
                yield Row(number, {"path": path}, Path(), size_bytes=len(line))

    def count(self) -> int | None:
        return self._count


class _Rows(RowSource):
    """Rows that a program passes. Only the caller knows whether they are the same next time."""

    is_of_caller = True

    def __init__(self, rows: Iterable[Mapping[str, Any]], key: str) -> None:
        self._rows = rows
        self._key = key
        self._total = len(rows) if isinstance(rows, Sequence) else None

    def fingerprint(self) -> dict[str, Any]:
        return {"rows": self._key}

    def first(self) -> Row | None:
        if self._total is None:
            # An iterator yields each row only once, so the first row is put back.
            self._rows = iter(self._rows)
            head = list(islice(self._rows, 1))
            self._rows = chain(head, self._rows)
            return next(iter(_Rows(head, "").rows(0)), None)
        return super().first()

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
        self._sources = sources
        self.is_files = all(source.is_files for source in sources)

    def fingerprint(self) -> dict[str, Any]:
        return {"inputs": [source.fingerprint() for source in self._sources]}

    def prepare(self, folder: Path) -> None:
        for source in self._sources:
            source.prepare(folder)

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
    given: str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]], key: str = ""
) -> RowSource:
    """The source for paths and patterns, or for rows.

    Args:
        given: A file (``.jsonl``, ``.ndjson``, ``.csv``, ``.tsv``, each also with ``.gz``; ``.parquet``), a
            folder, a pattern such as ``photos/**/*.jpg``, several of them, or rows as mappings.
        key: A name for the rows, so that a run of them can be resumed.

    Raises:
        ConfigError: a path does not exist, or it is a Parquet file and pyarrow is not installed.
    """
    if isinstance(given, str | Path):
        return _open_path(str(given), 0)
    if isinstance(given, Sequence) and given and all(isinstance(each, str | Path) for each in given):
        sources = [_open_path(str(each), number) for number, each in enumerate(given)]
        return sources[0] if len(sources) == 1 else _Several(sources)
    return _Rows(given, key)  # type: ignore[arg-type]


def _open_path(text: str, number: int) -> RowSource:
    path = Path(text)
    if path.is_dir():
        return _Files(text, ["**"], number)
    if not path.is_file():
        if glob.has_magic(text):
            return _Files(*split_pattern(text), number)
        raise ConfigError(f"there is no file or folder {text}")
    name = path.name.lower()
    if name.endswith(JSON_LINES):
        return _Lines(path)
    if name.endswith(CSV):
        return _Csv(path)
    if name.endswith(".parquet"):
        pyarrow_parquet()
        return _Parquet(path)
    # A single image or sound.
    return _Files(text.removesuffix(path.name), [glob.escape(path.name)], number)


def pyarrow_parquet() -> Any:
    """The module ``pyarrow.parquet``, which an extra installs.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module("pyarrow.parquet")
    except ImportError:
        raise ConfigError("Parquet files need pyarrow: pip install 'modelmill[parquet]'") from None


def _opened(path: Path) -> IO[bytes]:
    return gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")  # type: ignore[return-value]
