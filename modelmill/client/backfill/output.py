"""Rows that are done: written, made to last, and then let go of by the server."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import chain, islice
from typing import Any

from modelmill.client.backfill.bulk_api import COLLECT_IDS, BulkApi, NoAnswerError, TooLargeError
from modelmill.client.backfill.journal import Journal, Snapshot
from modelmill.client.backfill.sources import Row
from modelmill.client.backfill.stats import Stats
from modelmill.errors import ErrorCode, ModelmillError

CHECKPOINT_S, CHECKPOINT_ROWS = 0.5, 1000
"""A checkpoint is due after so long, or so many rows."""
MAX_LEFT = 100_000
"""Jobs that are kept in mind to be deleted, while the server does not do so."""
MAX_NOTED = 4000
"""Of those, in a checkpoint."""
RATE_AFTER_ROWS = 100
"""Before so many rows of this run are done, their rate of errors says nothing."""

Position = Callable[[], tuple[int, Sequence[int]]]


class StopError(Exception):
    """Raised when too many rows have failed."""


class Output:
    """Writes what becomes of each row.

    Args:
        wire: The server.
        journal: Where it is written; begun.
        stats: Filled on the way.
        max_error_rate: Part of this run's rows that may fail.
        position: The first row that was not taken from the input yet, and those before it that are not done.
    """

    def __init__(
        self, api: BulkApi, journal: Journal, stats: Stats, max_error_rate: float, position: Position
    ) -> None:
        self._api, self._journal, self._stats = api, journal, stats
        self._max_error_rate = max_error_rate
        self._position = position
        self._done = self._failed = 0
        self._since_mark = 0
        self._due = asyncio.Event()
        self._is_closed = False
        self._written: list[str] = []
        self._left: deque[str] = deque(journal.finished_jobs)
        # One thread, so that what goes to the disk goes there in order.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="backfill-journal")
        self._is_sound = True
        """Whether the disk took all that was written so far."""

    def write(self, row: Row, outcome: Mapping[str, Any]) -> None:
        """Writes one row's end. It counts once a checkpoint covers it.

        Raises:
            OSError: it cannot be written.
            StopError: it was one failure too many.
        """
        job_id = row.jobs[-1] if row.jobs else None
        document = {"row": row.number, "input": row.keep, **outcome, "job_id": job_id}
        text = json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=str)
        with self._on_disk():
            # Names of files may hold bytes that are no UTF-8; JSON has an escape that looks like Python's.
            self._journal.write(text.encode("utf-8", "backslashreplace") + b"\n")
        self._written += row.jobs
        self._since_mark += 1
        if self._since_mark >= CHECKPOINT_ROWS:
            self._due.set()
        self._count(outcome)

    def fail(self, row: Row, error: ModelmillError) -> None:
        """Writes a row that failed on this side of the wire."""
        self.write(row, {"status": "failed", "error": error.as_data()})

    def finish(self) -> None:
        """There will be no further row."""
        self._is_closed = True
        self._due.set()

    async def keep(self) -> None:
        """Makes checkpoints until it is finished, and lets the server forget what they cover."""
        while not self._is_closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECKPOINT_S):
                    await self._due.wait()
            self._due.clear()
            await self._checkpoint()
            # All that is covered, not one request's worth: more rows end meanwhile, and it would pile up.
            for _ in range(0, len(self._left), COLLECT_IDS):
                if not await self._let_go():
                    break
        await self._checkpoint()
        while self._left and await self._let_go():
            pass

    def close(self, state: str, reason: str) -> None:
        """The last checkpoint, also after an error or Ctrl-C, and how it ended."""
        try:
            if self._is_sound:
                with self._on_disk():
                    # Behind a checkpoint that is just being written, if there is one.
                    self._disk.submit(self._journal.commit, self._mark(), self._stats).result()
                    self._journal.end(state, self._stats, reason)
        except OSError:
            if state == "complete":
                raise
        finally:
            self._disk.shutdown()

    def _count(self, outcome: Mapping[str, Any]) -> None:
        stats = self._stats
        self._done += 1
        if outcome["status"] == "complete":
            stats.complete += 1
            return
        code = str((outcome.get("error") or {}).get("code", ErrorCode.INTERNAL.value))
        stats.failed += 1
        stats.errors[code] = stats.errors.get(code, 0) + 1
        self._failed += 1
        if self._done >= RATE_AFTER_ROWS and self._failed > self._done * self._max_error_rate:
            raise StopError(
                f"{self._failed} of {self._done} rows failed, which is more than the allowed part of "
                f"{self._max_error_rate:g}"
            )

    async def _checkpoint(self) -> None:
        if not self._since_mark:
            return
        with self._on_disk():
            mark, covered = self._mark(), len(self._written)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._disk, self._journal.commit, mark, self._stats)
        # Not before: the last checkpoint of a run that is stopped meanwhile notes them all.
        self._left.extend(self._written[:covered])
        del self._written[:covered]
        while len(self._left) > MAX_LEFT:
            self._left.popleft()  # the server forgets them in time by itself

    def _mark(self) -> Snapshot:
        self._since_mark = 0
        next_row, pending = self._position()
        # Whoever goes on after a crash deletes them. What lies further back, the server forgets in time.
        finished = list(islice(chain(self._written, self._left), MAX_NOTED))
        return self._journal.mark(next_row, pending, self._stats, finished)

    async def _let_go(self) -> bool:
        """Deletes a thousand jobs whose results are safe on our side; whether the server did so."""
        ids = list(islice(self._left, COLLECT_IDS))
        try:
            if ids:
                await self._api.delete(ids)
        except (NoAnswerError, TooLargeError):
            return False
        except ModelmillError:
            pass  # it is not asked again for these
        # Not before, for the same reason.
        for _ in ids:
            self._left.popleft()
        return True

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Around what writes: after an error there, nothing more is written."""
        try:
            yield
        except OSError as error:
            self._is_sound = False
            raise OSError(
                error.errno,
                f"the output cannot be written ({error.strerror or error}). What a checkpoint covers is "
                "safe: make room, and resume the run",
            ) from error
