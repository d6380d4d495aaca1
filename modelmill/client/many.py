"""Many jobs with a limited number in flight: ``map`` and ``submit_many`` of both clients."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    AsyncIterable,
    AsyncIterator,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from modelmill.client.flows import MAX_BULK_BYTES, MAX_BULK_LINES, Flows, PendingSubmit
from modelmill.client.wire import AsyncWire, Connection

GIVE_UP_S = 5.0
"""The time limit for canceling a job whose result is no longer needed."""

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Batch:
    """The settings that all jobs of one ``map`` share."""

    task: str
    model: str
    timeout_s: float | None
    batched: bool
    return_errors: bool

    async def run_one(self, wire: AsyncWire, flows: Flows, row: Row) -> Any:
        """The result of one job. If this coroutine is canceled, it cancels the job."""
        pending, fields = pending_submit(None, row)
        try:
            return await wire.run(
                flows.run(
                    self.task, self.model, fields, pending, batched=self.batched, timeout_s=self.timeout_s
                )
            )
        except asyncio.CancelledError:
            with suppress(Exception):
                async with asyncio.timeout(GIVE_UP_S):
                    await wire.run(flows.abandon(pending))
            raise
        except Exception as error:
            if self.return_errors:
                return error
            raise


def pending_submit(key: str | None, fields: Row) -> tuple[PendingSubmit, dict[str, Any]]:
    """A submit with its idempotency key, which may be one of the fields, and the other fields."""
    rest = dict(fields)
    row_key = rest.pop("idempotency_key", None)
    chosen = key or row_key
    return (PendingSubmit(key=str(chosen)) if chosen else PendingSubmit()), rest


async def run_many(
    wire: AsyncWire,
    flows: Flows,
    batch: Batch,
    rows: Iterable[Row] | AsyncIterable[Row],
    concurrency: int,
    ordered: bool,
) -> AsyncGenerator[Any, None]:
    """The results of all rows. At most ``concurrency`` rows are in flight or wait to be yielded."""
    source = aiter(rows) if isinstance(rows, AsyncIterable) else _awaited(rows)
    tasks: dict[asyncio.Task[Any], int] = {}  # in the order of the rows
    count, more = 0, True
    try:
        while True:
            while more and len(tasks) < max(1, concurrency):
                try:
                    row = await anext(source)
                except StopAsyncIteration:
                    more = False
                else:
                    tasks[asyncio.create_task(batch.run_one(wire, flows, row))] = count
                    count += 1
            if not tasks:
                return
            first = next(iter(tasks))
            if ordered:
                await asyncio.wait((first,))
            else:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                first = min(done, key=tasks.__getitem__)
            index = tasks.pop(first)
            yield first.result() if ordered else (index, first.result())
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def run_many_blocking(
    connection: Connection, batch: Batch, rows: Iterable[Row], concurrency: int, ordered: bool
) -> Iterator[Any]:
    """``run_many`` for a blocking caller. The rows are taken in the caller's thread."""
    source = iter(rows)
    waiting: deque[tuple[int, concurrent.futures.Future[Any]]] = deque()
    count, more = 0, True
    with _Loop(connection) as loop:
        while True:
            while more and len(waiting) < max(1, concurrency):
                try:
                    row = next(source)
                except StopIteration:
                    more = False
                else:
                    waiting.append((count, loop.start(batch.run_one(loop.wire, loop.flows, row))))
                    count += 1
            if not waiting:
                return
            if ordered:
                yield waiting.popleft()[1].result()
                continue
            done = concurrent.futures.wait(
                [future for _, future in waiting], return_when=concurrent.futures.FIRST_COMPLETED
            ).done
            found = next(item for item in waiting if item[1] in done)
            waiting.remove(found)
            yield found[0], found[1].result()


class _Loop:
    """An event loop in a thread, with its own connection. Leaving the context cancels what runs in it."""

    wire: AsyncWire
    flows: Flows

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="modelmill-map", daemon=True)

    def __enter__(self) -> _Loop:
        self._thread.start()
        self.wire = self.start(self._connect()).result()
        self.flows = Flows(self.wire.policy, self._connection.upload_over_bytes)
        return self

    def __exit__(self, *_: object) -> None:
        try:
            with suppress(TimeoutError):
                self.start(self._finish()).result(GIVE_UP_S * 2)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(GIVE_UP_S)
            if not self._thread.is_alive():
                self._loop.close()

    def start(self, work: Coroutine[Any, Any, Any]) -> concurrent.futures.Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _connect(self) -> AsyncWire:
        return AsyncWire(self._connection)

    async def _finish(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.wire.http.aclose()
        await self._loop.shutdown_asyncgens()
        await self._loop.shutdown_default_executor()


async def _awaited(rows: Iterable[Row]) -> AsyncIterator[Row]:
    for row in rows:
        yield row


@dataclass
class Lines:
    """Groups the lines of a bulk submit into requests of limited length and size."""

    _lines: list[bytes] = field(default_factory=list)
    _bytes: int = 0

    def add(self, line: bytes) -> list[bytes]:
        """Adds a line. If it does not fit with the earlier ones, returns these: send them now."""
        full = len(self._lines) >= MAX_BULK_LINES or self._bytes + len(line) > MAX_BULK_BYTES
        due = self.rest() if full else []
        self._lines.append(line)
        self._bytes += len(line)
        return due

    def rest(self) -> list[bytes]:
        """The lines that were not returned yet."""
        due, self._lines, self._bytes = self._lines, [], 0
        return due
