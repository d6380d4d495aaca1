"""A job on the server as an object: ``Job`` for the blocking client, ``AsyncJob`` for asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import aclosing
from typing import Any

import httpx

from modelmill.client.errors import ApiError, JobNotFinishedError, ended_badly, unreachable
from modelmill.client.events import Cursor, Event
from modelmill.client.flows import TERMINAL, Flows, events_call
from modelmill.client.protocol import RETRIED, Listen
from modelmill.client.wire import AsyncWire, Wire
from modelmill.errors import ErrorCode

POLL_S = 2
"""How often a job is polled if the server has no events."""


class _State:
    """The job document as the client knows it, and the properties that read it."""

    def __init__(self, document: Mapping[str, Any]) -> None:
        self.document: dict[str, Any] = dict(document)
        """The job document as last seen. Right after a submit, it has few fields."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.id} {self.task}/{self.model} {self.status}>"

    @property
    def id(self) -> str:
        return str(self.document["id"])

    @property
    def task(self) -> str:
        return str(self.document.get("task", ""))

    @property
    def model(self) -> str:
        return str(self.document.get("model", ""))

    @property
    def status(self) -> str:
        """``starting``, ``running``, ``complete``, ``failed`` or ``canceled``, as last seen."""
        return str(self.document["status"])

    @property
    def has_ended(self) -> bool:
        """Whether it had ended when it was last seen."""
        return self.status in TERMINAL

    @property
    def result(self) -> Any:
        """The answer of the model; for a batched job a list.

        Raises:
            JobNotFinishedError: the job had not ended when it was last seen; ``wait()`` waits for its end.
            JobFailedError: the job failed.
            JobCanceledError: the job was canceled.
        """
        if not self.has_ended:
            raise JobNotFinishedError(
                ErrorCode.INVALID_INPUT, f"The job {self.id} is {self.status}. Wait for its end with wait()."
            )
        if self.status != "complete":
            raise ended_badly(self.document)
        if "result" not in self.document:
            raise JobNotFinishedError(
                ErrorCode.INVALID_INPUT,
                f"A list of jobs has no results. Read job {self.id} with refresh().",
            )
        return self.document["result"]

    @property
    def warnings(self) -> list[dict[str, Any]]:
        """What was lost of the input although the model answered: ``item``, ``code`` and ``message``.

        ``item`` is the index of the item in a batched job, else 0.
        """
        return list(self.document.get("warnings") or ())

    @property
    def _is_whole(self) -> bool:
        return self.has_ended and (self.status != "complete" or "result" in self.document)

    def _replace(self, document: Mapping[str, Any]) -> None:
        self.document = {"task": self.task, "model": self.model, **document}

    def _update(self, event: Event) -> None:
        """Updates the document from an event."""
        if event.type == "ended" and event.data.get("status") in TERMINAL:
            self._replace(event.data)
        elif event.type == "started":
            self.document |= event.data
        elif event.type == "progress":
            self.document["progress"] = event.data


class _Failures:
    """Counts how often in a row a stream of events could not be opened, and gives the pause after each."""

    def __init__(self, wire: Wire | AsyncWire) -> None:
        self._wire = wire
        self._count = 0

    def pause_s(self, cursor: Cursor, error: httpx.TransportError | ApiError | None) -> float:
        """The pause before the next stream.

        Raises:
            ApiError: it failed too often, or for a reason that does not pass.
        """
        policy = self._wire.policy
        if cursor.is_open:
            # A stream that opened may break off any number of times. After a silent one, pause longer.
            self._count = 0 if cursor.received else min(self._count + 1, 5)
        elif error is not None:
            failure = error if isinstance(error, ApiError) else unreachable(policy.url, error)
            passes = failure.status is None or failure.status in RETRIED
            pause_s = policy.next_pause(self._count, failure.retry_after_s) if passes else None
            if pause_s is None:
                raise failure
            self._count += 1
            return pause_s
        return policy.pause_s(max(self._count - 1, 0), cursor.retry_s)


class Job(_State):
    """A job on the server, as last seen. ``refresh`` and ``wait`` read it again."""

    def __init__(self, wire: Wire, flows: Flows, document: Mapping[str, Any]) -> None:
        super().__init__(document)
        self._wire = wire
        self._flows = flows

    def refresh(self) -> Job:
        """Reads the job again."""
        self._replace(self._wire.run(self._flows.ask(self.id)))
        return self

    def wait(self, timeout_s: float | None = None) -> Job:
        """Waits until the job has ended: complete, failed or canceled.

        Raises:
            JobTimeoutError: a ``TimeoutError``: the job has not ended after ``timeout_s``. It continues.
        """
        if not self._is_whole:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            self._replace(self._wire.run(self._flows.wait(self.id, deadline, timeout_s)))
        return self

    def cancel(self) -> Job:
        """Cancels the job: at once while it waits, between batches or steps while it runs.

        Raises:
            InvalidRequestError: the job has already ended.
        """
        self.document |= self._wire.run(self._flows.cancel(self.task, self.id))
        return self

    def delete(self) -> None:
        """Removes the job and its result. If the job has not ended, cancels it first."""
        self._wire.run(self._flows.delete(self.id))

    def rerun(self) -> Job:
        """Submits the same request again, as a new job.

        Raises:
            InvalidRequestError: the server no longer has the request.
        """
        document = self._wire.run(self._flows.rerun(self.id))
        return Job(self._wire, self._flows, {"task": self.task, "model": self.model, **document})

    def events(self, last_event_id: str | None = None) -> Iterator[Event]:
        """The events of the job until its end, from the first one or from after ``last_event_id``.

        If a stream breaks off, the next one resumes where it stopped. If the server has no events, the job is
        polled and its events have no id.
        """
        cursor = Cursor(self.id, last_event_id)
        failures = _Failures(self._wire)
        while not cursor.is_over:
            error: httpx.TransportError | ApiError | None = None
            try:
                for event in self._wire.stream(Listen(cursor, events_call(cursor), None)):
                    self._update(event)
                    yield event
            except (httpx.TransportError, ApiError) as broken:
                error = broken
            if not (cursor.is_over or cursor.is_supported):
                yield from self._polled(cursor)
            elif not cursor.is_over:
                time.sleep(failures.pause_s(cursor, error))

    def _polled(self, cursor: Cursor) -> Iterator[Event]:
        while not cursor.is_over:
            asked_at = time.monotonic()
            self._replace(self._wire.run(self._flows.ask(self.id, POLL_S)))
            yield from cursor.compare(self.document)
            if not cursor.is_over:
                time.sleep(max(0.0, min(0.5, POLL_S - (time.monotonic() - asked_at))))


class AsyncJob(_State):
    """As ``Job``, for asyncio."""

    def __init__(self, wire: AsyncWire, flows: Flows, document: Mapping[str, Any]) -> None:
        super().__init__(document)
        self._wire = wire
        self._flows = flows

    async def refresh(self) -> AsyncJob:
        """Reads the job again."""
        self._replace(await self._wire.run(self._flows.ask(self.id)))
        return self

    async def wait(self, timeout_s: float | None = None) -> AsyncJob:
        """Waits until the job has ended: complete, failed or canceled.

        Raises:
            JobTimeoutError: a ``TimeoutError``: the job has not ended after ``timeout_s``. It continues.
        """
        if not self._is_whole:
            deadline = None if timeout_s is None else time.monotonic() + timeout_s
            self._replace(await self._wire.run(self._flows.wait(self.id, deadline, timeout_s)))
        return self

    async def cancel(self) -> AsyncJob:
        """As in ``Job``."""
        self.document |= await self._wire.run(self._flows.cancel(self.task, self.id))
        return self

    async def delete(self) -> None:
        """As in ``Job``."""
        await self._wire.run(self._flows.delete(self.id))

    async def rerun(self) -> AsyncJob:
        """As in ``Job``."""
        document = await self._wire.run(self._flows.rerun(self.id))
        return AsyncJob(self._wire, self._flows, {"task": self.task, "model": self.model, **document})

    async def events(self, last_event_id: str | None = None) -> AsyncGenerator[Event, None]:
        """As in ``Job``."""
        cursor = Cursor(self.id, last_event_id)
        failures = _Failures(self._wire)
        while not cursor.is_over:
            error: httpx.TransportError | ApiError | None = None
            try:
                async with aclosing(self._wire.stream(Listen(cursor, events_call(cursor), None))) as stream:
                    async for event in stream:
                        self._update(event)
                        yield event
            except (httpx.TransportError, ApiError) as broken:
                error = broken
            if not (cursor.is_over or cursor.is_supported):
                async with aclosing(self._polled(cursor)) as polled:
                    async for event in polled:
                        yield event
            elif not cursor.is_over:
                await asyncio.sleep(failures.pause_s(cursor, error))

    async def _polled(self, cursor: Cursor) -> AsyncGenerator[Event, None]:
        while not cursor.is_over:
            asked_at = time.monotonic()
            self._replace(await self._wire.run(self._flows.ask(self.id, POLL_S)))
            for event in cursor.compare(self.document):
                yield event
            if not cursor.is_over:
                await asyncio.sleep(max(0.0, min(0.5, POLL_S - (time.monotonic() - asked_at))))
