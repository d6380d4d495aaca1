"""The loop of a backfill: take rows, submit them, collect their results, write them, delete their jobs.

At most a window of rows is in flight: taken from the input and not yet written. The idempotency key of a job
is made of the run's id and the row's number. So a row that is submitted again finds its first job.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import aclosing, suppress
from typing import Any

from modelmill.client.backfill.bulk_api import COLLECT_IDS, Backoff, BulkApi, NoAnswerError, TooLargeError
from modelmill.client.backfill.chunks import Chunk, Chunks
from modelmill.client.backfill.collect import Collector
from modelmill.client.backfill.journal import Journal
from modelmill.client.backfill.mapping import Mapper
from modelmill.client.backfill.options import BackfillOptions
from modelmill.client.backfill.output import Output, StopError
from modelmill.client.backfill.rows import Row, RowSource
from modelmill.client.backfill.stats import Stats
from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill.formats.encodings import InputError

SUBMITS = 4
"""Bulk submits at a time."""
MAX_BYTES_IN_FLIGHT = 64 * 1024 * 1024
"""When the rows in flight take more memory, no further row is taken. Each stays in memory for a retry."""
REPORT_S = 0.25
RETRY_S = 1.0
"""The pause before a failed job's first retry. It doubles before each further one."""
MAX_LOST = 3
"""How often a row is submitted again because the server no longer knows its job."""
REGROW_S = 60.0
"""After this time, a window that was narrowed to a quota is tried in full again."""

STOPS_THE_RUN = frozenset(
    {
        ErrorCode.UNAUTHENTICATED,
        ErrorCode.FORBIDDEN,
        ErrorCode.LANE_NOT_ALLOWED,
        ErrorCode.TASK_NOT_FOUND,
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.TASK_NOT_SUPPORTED,
    }
)
"""Refusals that every other row would get as well."""


class Engine:
    """One run. The caller opens and closes everything that is passed to it.

    Args:
        where: Task and model.
        api: The server.
        backoff: The pauses that all requests share.
        source: The input, prepared.
        mapper: Turns rows into requests.
        journal: The output; ``begin`` was called.
        stats: The engine updates it.
        options: How the run is done.
    """

    def __init__(
        self,
        where: tuple[str, str],
        *,
        api: BulkApi,
        backoff: Backoff,
        source: RowSource,
        mapper: Mapper,
        journal: Journal,
        stats: Stats,
        options: BackfillOptions,
    ) -> None:
        self._task, self._model = where
        self._api, self._backoff = api, backoff
        self._stats, self._options = stats, options
        self._source, self._begun_at = source, journal.next_row
        self._next_row = journal.next_row
        self._rows_to_redo = set(journal.pending)
        """Rows that an earlier run took and did not finish, until the source yields them again."""
        self._pending: set[int] = set()
        self._bytes_in_flight = self._taken = 0
        self._retries: deque[tuple[float, Row]] = deque()
        self._is_exhausted = False
        self._input_error: InputError | None = None
        self._limit = options.window
        self._paused_until = self._regrow_at = 0.0
        self._pause_reason = ""
        self._changed, self._finished = asyncio.Event(), asyncio.Event()
        self._chunks = Chunks(self._rows(), mapper, journal.run_id, is_of_caller=source.is_of_caller)
        self._output = Output(api, journal, stats, options.max_error_rate, self._position)
        count = -(-options.window // COLLECT_IDS)
        self._collectors = [Collector(api, backoff, self._ended) for _ in range(count)]

    async def run(self) -> tuple[str, str]:
        """Works until all rows are done.

        Returns:
            The state, ``complete`` or ``stopped``, and the reason if it is ``stopped``.

        Raises:
            ModelmillError: the server refuses the run, or does not answer.
            OSError: the output cannot be written.
            InputError: the input cannot be read any further.
            ConfigError: the input has changed since the run began.
        """
        state, reason, is_cut = "stopped", "it was interrupted", False
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._feed(group))
                for collector in self._collectors:
                    group.create_task(collector.run())
                group.create_task(self._output.write_checkpoints())
                group.create_task(self._report_regularly())
            state, reason = "complete", ""
        except BaseExceptionGroup as errors:
            error = _first(errors)
            reason, is_cut = str(error), isinstance(error, InputError) and error.is_cut
            if not isinstance(error, StopError):
                raise error from None
        finally:
            self._output.close(state, reason, input_is_cut=is_cut)
            self._report()
        return state, reason

    def _rows(self) -> Iterator[Row]:
        """The rows that are not done yet."""
        start = min(self._rows_to_redo, default=self._begun_at)
        for row in self._source.rows(start):
            if row.number >= self._begun_at or row.number in self._rows_to_redo:
                yield row

    def _position(self) -> tuple[int, list[int]]:
        return self._next_row, [*self._pending, *self._rows_to_redo]

    # From the input to the server

    async def _feed(self, group: asyncio.TaskGroup) -> None:
        places = asyncio.Semaphore(SUBMITS)
        while self._pending or not self._is_exhausted:
            self._changed.clear()
            is_paused = time.monotonic() < self._paused_until
            room = 0 if is_paused else self._room()
            self._requeue(is_paused)
            if room or (self._chunks.has_more and not is_paused):
                await places.acquire()
                chunk = await self._next_chunk(room)
                if chunk is None:
                    places.release()
                    continue
                group.create_task(self._submit(chunk)).add_done_callback(lambda _: places.release())
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._wait_s()):
                        await self._changed.wait()
        if self._input_error is not None:
            raise self._input_error
        self._finished.set()
        self._output.finish()
        for collector in self._collectors:
            collector.close()

    def _room(self) -> int:
        """How many rows may be taken now. 0 also if they are too few to be worth a request."""
        if time.monotonic() > self._regrow_at:
            self._limit = self._options.window
        room = self._limit - len(self._pending)
        is_full = self._bytes_in_flight > MAX_BYTES_IN_FLIGHT and self._pending
        return 0 if self._is_exhausted or is_full or room < max(1, self._limit // 8) else room

    def _requeue(self, is_paused: bool) -> None:
        """Gives rows whose pause is over to the next chunk, to be submitted again."""
        now = time.monotonic()
        for _ in range(0 if is_paused else len(self._retries)):
            ready_at, row = self._retries.popleft()
            if ready_at <= now:
                self._chunks.put_back(row)
            else:
                self._retries.append((ready_at, row))

    def _wait_s(self) -> float | None:
        """How long to wait when nothing happens; None to wait for an event only."""
        now = time.monotonic()
        if self._paused_until > now:
            return self._paused_until - now + 0.001
        moments = [moment for moment, _ in self._retries]
        return max(0.0, min(moments) - now) + 0.001 if moments else None

    async def _next_chunk(self, room: int) -> Chunk | None:
        try:
            chunk = await self._chunks.next(room)
        except InputError as error:
            # The run ends with this error when the rows before have ended.
            self._input_error, self._is_exhausted = error, True
            return None
        for row in chunk.taken:
            self._rows_to_redo.discard(row.number)
            self._next_row = max(self._next_row, row.number + 1)
            self._pending.add(row.number)
            row.place = self._taken
            self._taken += 1
            self._bytes_in_flight += row.size_bytes
        if chunk.is_last:
            self._is_exhausted = True
            if self._rows_to_redo:
                raise ConfigError("the input has fewer rows than it had when this run began")
        for row, problem in chunk.failed:
            self._fail(row, problem)
        return chunk

    async def _submit(self, chunk: Chunk) -> None:
        """Submits until each row has an answer."""
        rows, lines = chunk.rows, chunk.lines
        while rows:
            answered = 0
            try:
                async with aclosing(self._api.bulk(self._task, self._model, lines)) as answers:
                    async for answer in answers:
                        if answered < len(rows):
                            answered += 1
                            self._submitted(rows[answered - 1], answer)
                if answered == len(rows):
                    return
                raise NoAnswerError("the answer to a submit was cut off")
            except NoAnswerError as error:
                rows, lines = rows[answered:], lines[answered:]
                await self._backoff.pause(error)
            except TooLargeError as error:
                if len(rows) == 1:
                    self._fail(rows[0], ModelmillError(ErrorCode.BODY_TOO_LARGE, str(error)))
                    return
                half = len(rows) // 2
                await self._submit(Chunk(rows[:half], lines[:half]))
                rows, lines = rows[half:], lines[half:]

    def _submitted(self, row: Row, answer: Mapping[str, Any]) -> None:
        error = answer.get("error")
        if error is None:
            row.jobs.append(str(answer["id"]))
            min(self._collectors, key=len).add(row.jobs[-1], row)
            return
        code = str(error.get("code"))
        if code in STOPS_THE_RUN:
            raise ModelmillError(ErrorCode(code), str(error.get("message")))
        if code == ErrorCode.IDEMPOTENCY_CONFLICT and row.lost < MAX_LOST:
            # The file that the row names has changed since it was submitted. That job has other inputs.
            row.lost += 1
            self._retry(row)
        elif error.get("retryable"):
            self._pause(code, str(error.get("message")), float(error.get("retry_after_s", 1.0)))
            self._retry(row)
        else:
            self._write(row, {"status": "failed", "error": error})

    def _pause(self, code: str, message: str, retry_after_s: float) -> None:
        """Submits nothing for a while. After a refusal by a quota, also narrows the window to the quota."""
        now = time.monotonic()
        self._paused_until = max(self._paused_until, now + retry_after_s)
        self._pause_reason = message
        if code == ErrorCode.QUOTA_EXCEEDED:
            accepted = sum(map(len, self._collectors))
            self._limit = min(self._limit, accepted or max(1, self._options.window // 8))
            self._regrow_at = now + REGROW_S

    def _retry(self, row: Row, delay_s: float = 0.0) -> None:
        self._retries.append((time.monotonic() + delay_s, row))
        self._changed.set()

    # From the server to the output

    def _ended(self, row: Row, document: Mapping[str, Any]) -> None:
        status, error = document.get("status"), document.get("error")
        warnings = _warnings(document)
        if status == "complete":
            self._write(row, {"status": "complete", "result": document.get("result"), **warnings})
        elif status is None and row.lost < MAX_LOST:
            # The job expired before it was collected, or it was deleted.
            row.jobs.pop()
            row.lost += 1
            self._retry(row)
        elif status == "canceled":
            self._fail(row, ModelmillError(ErrorCode.JOB_CANCELED, "The job was canceled."))
        elif isinstance(error, Mapping) and error.get("retryable") and row.failures < self._options.retries:
            self._stats.retried += 1
            row.failures += 1
            self._retry(row, RETRY_S * 2 ** (row.failures - 1))
        else:
            self._write(row, {"status": "failed", "error": error, **warnings})

    def _fail(self, row: Row, error: ModelmillError) -> None:
        self._write(row, {"status": "failed", "error": error.as_data()})

    def _write(self, row: Row, outcome: Mapping[str, Any]) -> None:
        self._pending.discard(row.number)
        self._bytes_in_flight -= row.size_bytes
        self._changed.set()
        self._output.write(row, outcome)

    async def _report_regularly(self) -> None:
        while not self._finished.is_set():
            self._report()
            with suppress(TimeoutError):
                async with asyncio.timeout(REPORT_S):
                    await self._finished.wait()

    def _report(self) -> None:
        stats = self._stats
        is_paused = time.monotonic() < self._paused_until
        stats.in_flight = len(self._pending)
        stats.trouble = self._backoff.trouble or (self._pause_reason if is_paused else "")
        stats.sample()
        if self._options.on_progress is not None:
            self._options.on_progress(stats)


def _warnings(document: Mapping[str, Any]) -> dict[str, Any]:
    """The warnings of a job, as they are written. A row is one item, so its index is left out."""
    given = document.get("warnings")
    found = [each for each in given if isinstance(each, Mapping)] if isinstance(given, list) else []
    kept = [{name: value for name, value in each.items() if name != "item"} for each in found]
    return {"warnings": kept} if kept else {}


def _first(errors: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended the run."""
    error = errors.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error
