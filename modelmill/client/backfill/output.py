"""Finished rows: written, covered by a checkpoint on the disk, then deleted on the server."""

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
from modelmill.client.backfill.judge import Judge
from modelmill.client.backfill.rows import Row
from modelmill.client.backfill.stats import Stats
from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill.formats.names import storable_data

CHECKPOINT_S, CHECKPOINT_ROWS = 0.5, 1000
"""A checkpoint is due after this time, or after this many rows."""
MAX_UNDELETED = 100_000
"""The most job ids that are remembered while the server does not delete them."""
MAX_NOTED = 4000
"""The most of these ids in a checkpoint."""

Position = Callable[[], tuple[int, Sequence[int]]]


class StopError(Exception):
    """Raised when too many rows have failed."""


class Output:
    """Writes the outcome of each row.

    Args:
        api: The server.
        journal: The output folder; ``begin`` was called.
        stats: The output updates it.
        max_error_rate: The part of this run's rows that may fail.
        position: Returns the first row that was not taken from the input, and the rows before it that are
            not done.
    """

    def __init__(
        self, api: BulkApi, journal: Journal, stats: Stats, max_error_rate: float, position: Position
    ) -> None:
        self._api, self._journal, self._stats = api, journal, stats
        self._judge = Judge(max_error_rate)
        self._position = position
        self._since_snapshot = 0
        self._due = asyncio.Event()
        self._is_closed = False
        self._written: list[str] = []
        self._undeleted: deque[str] = deque(journal.finished_jobs)
        # One thread, so that the disk gets everything in order.
        self._disk = ThreadPoolExecutor(1, thread_name_prefix="backfill-journal")
        self._can_write = True
        """False after an error of the disk. From then on, nothing is written."""

    def write(self, row: Row, outcome: Mapping[str, Any]) -> None:
        """Writes the outcome of one row. The row is done when a checkpoint covers it.

        Raises:
            OSError: it cannot be written.
            StopError: too many rows have failed.
        """
        job_id = row.jobs[-1] if row.jobs else None
        document = {"row": row.number, "input": row.keep, **outcome, "job_id": job_id}
        line = _json(document)
        with self._on_disk():
            self._journal.write(line + b"\n")
        self._written += row.jobs
        self._since_snapshot += 1
        if self._since_snapshot >= CHECKPOINT_ROWS:
            self._due.set()
        self._count(row, outcome)

    def finish(self) -> None:
        """No further row will be written."""
        self._is_closed = True
        self._due.set()

    async def write_checkpoints(self) -> None:
        """Writes checkpoints until ``finish`` is called, and deletes the jobs that they cover."""
        while not self._is_closed:
            with suppress(TimeoutError):
                async with asyncio.timeout(CHECKPOINT_S):
                    await self._due.wait()
            self._due.clear()
            await self._checkpoint()
            # Delete all covered jobs, in several requests. With one request, more rows end meanwhile, and
            # the rest would grow.
            for _ in range(0, len(self._undeleted), COLLECT_IDS):
                if not await self._delete_some():
                    break
        await self._checkpoint()
        while self._undeleted and await self._delete_some():
            pass

    def close(self, state: str, reason: str, *, input_is_cut: bool = False) -> None:
        """Writes the last checkpoint and how the run ended, also after an error or Ctrl-C."""
        try:
            if self._can_write:
                with self._on_disk():
                    # In the same thread, so after a checkpoint that is being written now.
                    self._disk.submit(self._journal.commit, self._snapshot(), self._stats).result()
                    self._journal.end(state, self._stats, reason, input_is_cut=input_is_cut)
        except OSError:
            if state == "complete":
                raise
        finally:
            self._disk.shutdown()

    def _count(self, row: Row, outcome: Mapping[str, Any]) -> None:
        stats = self._stats
        for code in {str(each.get("code")) for each in outcome.get("warnings", ())}:
            stats.warnings[code] = stats.warnings.get(code, 0) + 1
        failed = outcome["status"] != "complete"
        if failed:
            code = str((outcome.get("error") or {}).get("code", ErrorCode.INTERNAL.value))
            stats.failed += 1
            stats.errors[code] = stats.errors.get(code, 0) + 1
        else:
            stats.complete += 1
        reason = self._judge.ended(row.place, failed=failed)
        if reason:
            raise StopError(reason)

    async def _checkpoint(self) -> None:
        if not self._since_snapshot:
            return
        with self._on_disk():
            snapshot, covered = self._snapshot(), len(self._written)
            loop = asyncio.get_running_loop()
            await loop.run_in_executor(self._disk, self._journal.commit, snapshot, self._stats)
        # Only after the commit. If the run is stopped before it, the last checkpoint notes all these ids.
        self._undeleted.extend(self._written[:covered])
        del self._written[:covered]
        while len(self._undeleted) > MAX_UNDELETED:
            self._undeleted.popleft()  # the server deletes them when they expire

    def _snapshot(self) -> Snapshot:
        self._since_snapshot = 0
        next_row, pending = self._position()
        # After a crash, a resumed run deletes these jobs. The server deletes older ones when they expire.
        finished = list(islice(chain(self._written, self._undeleted), MAX_NOTED))
        return self._journal.snapshot(next_row, pending, self._stats, finished)

    async def _delete_some(self) -> bool:
        """Deletes up to a thousand jobs whose results are on the disk. False: the server did not answer."""
        ids = list(islice(self._undeleted, COLLECT_IDS))
        try:
            if ids:
                await self._api.delete(ids)
        except (NoAnswerError, TooLargeError):
            return False
        except ModelmillError:
            pass  # the server refuses for good, so these ids are not sent again
        # Only after the answer, so that a checkpoint meanwhile still notes these ids.
        for _ in ids:
            self._undeleted.popleft()
        return True

    @contextmanager
    def _on_disk(self) -> Iterator[None]:
        """Wraps each access to the disk. After an error, nothing more is written."""
        try:
            yield
        except OSError as error:
            self._can_write = False
            raise OSError(
                error.errno,
                f"the output cannot be written ({error.strerror or error}). The rows that a "
                "checkpoint covers are safe: make room, and resume the run",
            ) from error
        except ConfigError:
            self._can_write = False
            raise


def _json(document: Mapping[str, Any]) -> bytes:
    """A row of the output. Names of files may hold bytes that are not UTF-8."""
    try:
        return json.dumps(document, ensure_ascii=False, separators=(",", ":"), default=str).encode()
    except UnicodeEncodeError:
        plain = storable_data(dict(document))
        return json.dumps(plain, ensure_ascii=False, separators=(",", ":"), default=str).encode()
