"""Rows from standard input or a named pipe. They are copied, since a run reads them more than once."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from modelmill.client.backfill.rows import Row, RowSource
from modelmill.client.backfill.tables import Reading, TableSource, open_table
from modelmill.errors import ConfigError
from modelmill.formats.encodings import InputError

BLOCK_BYTES = 1024 * 1024


class PipeRows(RowSource):
    """Rows that are read from a pipe when the run begins, and afterwards from a copy in the output's folder.

    Args:
        path: The pipe; None for standard input.
        reading: How the rows are read.
        number: The number of this input, for the name of the copy.
    """

    def __init__(self, path: Path | None, reading: Reading, number: int) -> None:
        super().__init__()
        self._path, self._reading, self._number = path, reading, number
        self._name = "standard input" if path is None else str(path)
        self._table: TableSource | None = None

    def fingerprint(self) -> dict[str, Any]:
        return {"pipe": self._number, **self._reading.as_data()}

    def prepare(self, folder: Path) -> None:
        copy = folder / f"input-{self._number}.data"
        if copy.exists():
            self._compare(copy)
        else:
            # Renamed when it is whole: a run that was killed before that reads the pipe again.
            unfinished = copy.with_suffix(".tmp")
            with unfinished.open("wb") as file:
                for block in self._blocks():
                    file.write(block)
            unfinished.rename(copy)
        self._table = open_table(copy, self._reading, self._name, Path())
        if self._table is None:
            raise InputError(
                f"{self._name} holds no rows that can be read here; give --input-format if it does"
            )

    def check(self, limit_bytes: int) -> int:
        return self._opened.check(limit_bytes)

    def rows(self, start: int) -> Generator[Row, None, None]:
        yield from self._opened.rows(start)

    def unreadable(self, row: Row) -> str:
        return self._opened.unreadable(row)

    def count(self) -> int | None:
        return self._opened.count()

    @property
    def _opened(self) -> TableSource:
        assert self._table is not None, "prepare comes first"
        return self._table

    def _compare(self, copy: Path) -> None:
        """A resumed run may be given the rows again, or none."""
        if self._path is None and os.isatty(0):
            return
        blocks = self._blocks()
        first = next(blocks, b"")
        if not first:
            return
        with copy.open("rb") as file:
            while first:
                if file.read(len(first)) != first:
                    raise ConfigError(f"{self._name} holds other rows than it did when this run began")
                first = next(blocks, b"")
            if file.read(1):
                raise ConfigError(f"{self._name} holds fewer rows than it did when this run began")

    def _blocks(self) -> Iterator[bytes]:
        # Not through ``sys.stdin``: this thread may still wait for the pipe when the process ends.
        with ExitStack() as opened:
            number = 0
            if self._path is not None:
                number = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
                opened.callback(os.close, number)
            while block := os.read(number, BLOCK_BYTES):
                yield block
