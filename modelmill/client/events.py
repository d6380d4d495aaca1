"""A job's server-sent events: the events received so far, and where to resume after a broken stream."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from httpx_sse import ServerSentEvent

from modelmill.client.errors import NotFoundError, problem
from modelmill.errors import ErrorCode

MEDIA_TYPE = "text/event-stream"


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job.

    Attributes:
        id: A value for ``last_event_id``; empty if the server has no events and the job was polled.
        type: ``started``, ``progress``, ``log``, ``ended``, or a type of a newer server.
        data: The content of the event. For ``ended`` it is the job document.
    """

    id: str
    type: str
    data: dict[str, Any]


@dataclass
class Cursor:
    """The position in the events of one job, over one or more streams.

    Attributes:
        job_id: The job.
        last_id: The id of the last event. The server replays the events after it.
        document: The job document, if the last event was received.
        is_over: Whether no further event will come.
        is_supported: False if the server turned out to have no events.
        is_open: Whether the latest stream was opened.
        received: The number of events of the latest stream.
        retry_s: The pause before the next stream that the server asks for.
    """

    job_id: str
    last_id: str | None = None
    document: dict[str, Any] | None = None
    is_over: bool = False
    is_supported: bool = True
    is_open: bool = False
    received: int = 0
    retry_s: float | None = None
    _seen: dict[str, Any] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        after = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        return {"Accept": MEDIA_TYPE, "Cache-Control": "no-store", **after}

    def begin(self) -> None:
        """Call before a stream is opened."""
        self.is_open, self.received = False, 0

    def accept(self, response: httpx.Response) -> bool:
        """Whether this answer is a stream of events. Its body need not be read."""
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self.is_open = response.status_code == 200 and kind == MEDIA_TYPE
        return self.is_open

    def refuse(self, response: httpx.Response) -> None:
        """Takes an answer that is not a stream. It must have been read to its end.

        Raises:
            ApiError: the job does not exist, or the server cannot answer now.
        """
        if response.status_code == 204:
            self.is_over = True  # the last event was received before
            return
        if response.is_success or response.status_code in (405, 406, 501):
            self.is_supported = False
            return
        error = problem(response)
        # A server without this route, or a proxy, answers 404 with another code.
        if isinstance(error, NotFoundError) and error.code is not ErrorCode.JOB_NOT_FOUND:
            self.is_supported = False
            return
        raise error

    def take(self, sent: ServerSentEvent) -> Event | None:
        """The event; None if the message is not an event of a job."""
        if sent.retry is not None:
            self.retry_s = min(max(sent.retry / 1000, 0.0), 60.0)
        self.last_id = sent.id or self.last_id
        if not sent.data:
            return None
        try:
            data = json.loads(sent.data)
        except ValueError:
            return None
        if not isinstance(data, dict):
            return None
        self.received += 1
        if sent.event == "ended":
            self.document, self.is_over = data, True
        return Event(sent.id, sent.event, data)

    def compare(self, document: Mapping[str, Any]) -> list[Event]:
        """The events since the last document, for a server without events."""
        events = []
        now = {"started_at": document.get("started_at"), "progress": document.get("progress")}
        if now["started_at"] and now["started_at"] != self._seen.get("started_at"):
            data = {name: document.get(name) for name in ("id", "started_at", "deliveries")}
            events.append(Event("", "started", {**data, "status": "running"}))
        if now["progress"] and now["progress"] != self._seen.get("progress"):
            events.append(Event("", "progress", dict(now["progress"])))
        self._seen = now
        if document["status"] in ("complete", "failed", "canceled"):
            self.document, self.is_over = dict(document), True
            events.append(Event("", "ended", dict(document)))
        return events
