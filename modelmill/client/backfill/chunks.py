"""Requests for many rows at once. They are small: a few of them are in memory at a time."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from modelmill.client.backfill.mapping import Mapper
from modelmill.client.backfill.rows import Row
from modelmill.errors import ModelmillError
from modelmill.formats.encodings import InputError

CHUNK_ROWS, CHUNK_BYTES = 500, 2 * 1024 * 1024
"""A chunk that has reached either limit is full."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """The content of one bulk submit.

    Attributes:
        rows: The rows to submit.
        lines: The request of each row.
        taken: Rows that were taken from the input for this chunk. They may be more than ``rows``.
        failed: Rows that cannot be submitted, and why.
        is_last: Whether the input has no further row.
    """

    rows: list[Row] = field(default_factory=list)
    lines: list[bytes] = field(default_factory=list)
    taken: list[Row] = field(default_factory=list)
    failed: list[tuple[Row, ModelmillError]] = field(default_factory=list)
    is_last: bool = False


class Chunks:
    """Takes rows and turns them into requests. It works in a thread, since it reads files.

    Args:
        rows: The rows that are not done yet.
        mapper: Turns rows into requests.
        run_id: The first part of each idempotency key.
        is_of_caller: Whether the rows come from the caller's code, which must not run in another thread.
    """

    def __init__(self, rows: Iterator[Row], mapper: Mapper, run_id: str, *, is_of_caller: bool) -> None:
        self._rows = rows
        self._mapper = mapper
        self._run_id = run_id
        self._is_of_caller = is_of_caller
        self._waiting: deque[Row] = deque()
        self._error: InputError | None = None

    @property
    def has_more(self) -> bool:
        """Whether rows wait that were taken before."""
        return bool(self._waiting)

    def put_back(self, row: Row) -> None:
        """Adds a row that must be submitted again."""
        self._waiting.append(row)

    async def next(self, room: int) -> Chunk:
        """The next chunk. Takes up to ``room`` rows from the input if no other rows wait.

        Raises:
            InputError: the input cannot be read any further. All rows before have been in a chunk.
        """
        wanted = 0 if self._waiting else min(room, CHUNK_ROWS)
        if self._is_of_caller:
            taken, is_last = self._take(wanted)
            return await asyncio.to_thread(self._make, taken, is_last)
        return await asyncio.to_thread(lambda: self._make(*self._take(wanted)))

    def _take(self, wanted: int) -> tuple[list[Row], bool]:
        taken: list[Row] = []
        size = 0
        while len(taken) < wanted and size < CHUNK_BYTES:
            try:
                if self._error is not None:
                    raise self._error
                row = next(self._rows, None)
            except InputError as error:
                self._error = error
                if not taken:
                    raise
                return taken, False
            if row is None:
                return taken, True
            taken.append(row)
            size += row.size_bytes
        return taken, False

    def _make(self, taken: list[Row], is_last: bool) -> Chunk:
        chunk = Chunk(taken=taken, is_last=is_last)
        self._waiting.extend(taken)
        size = 0
        while self._waiting and size < CHUNK_BYTES and len(chunk.rows) < CHUNK_ROWS:
            row = self._waiting.popleft()
            tries = row.failures + row.lost
            key = f"{self._run_id}-{row.number}" + (f"-{tries}" if tries else "")
            try:
                line = self._mapper.request(row, key)
            except ModelmillError as error:
                chunk.failed.append((row, error))
                continue
            size += len(line)
            chunk.rows.append(row)
            chunk.lines.append(line)
        return chunk
