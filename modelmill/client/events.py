"""A job's server-sent events: what was heard, and where to go on after a stream that broke off."""

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
        id: For ``last_event_id``; empty where the server keeps no events and the job was polled.
        type: ``started``, ``progress``, ``log``, ``ended``, or what a newer server tells of.
        data: What the event says; of ``ended`` it is the job document.
    """

    id: str
    type: str
    data: dict[str, Any]


@dataclass
class Cursor:
    """How far the events of one job were heard, over however many streams.

    Attributes:
        job_id: The job.
        last_id: Of the last event; the server replays what came after it.
        document: The job document, if the last event came.
        is_over: Whether no event is to come any more.
        is_supported: False once the server was seen to have no events.
        is_open: Whether the stream at hand was opened, or the last one was.
        heard: Events of the stream at hand.
        retry_s: The pause before the next stream that the server wishes.
    """

    job_id: str
    last_id: str | None = None
    document: dict[str, Any] | None = None
    is_over: bool = False
    is_supported: bool = True
    is_open: bool = False
    heard: int = 0
    retry_s: float | None = None
    _seen: dict[str, Any] = field(default_factory=dict)

    @property
    def headers(self) -> dict[str, str]:
        after = {} if self.last_id is None else {"Last-Event-ID": self.last_id}
        return {"Accept": MEDIA_TYPE, "Cache-Control": "no-store", **after}

    def begin(self) -> None:
        """Before a stream is opened."""
        self.is_open, self.heard = False, 0

    def accept(self, response: httpx.Response) -> bool:
        """Whether this answer is a stream of events; its body need not be read."""
        kind = response.headers.get("Content-Type", "").partition(";")[0].strip().lower()
        self.is_open = response.status_code == 200 and kind == MEDIA_TYPE
        return self.is_open

    def refuse(self, response: httpx.Response) -> None:
        """Takes an answer, read to its end, that is no stream.

        Raises:
            ApiError: there is no such job, or the server cannot answer now.
        """
        if response.status_code == 204:
            self.is_over = True  # the last event was heard already
            return
        if response.is_success or response.status_code in (405, 406, 501):
            self.is_supported = False
            return
        error = problem(response)
        # A server that knows no such route says so, or another one in its place does.
        if isinstance(error, NotFoundError) and error.code is not ErrorCode.JOB_NOT_FOUND:
            self.is_supported = False
            return
        raise error

    def take(self, sent: ServerSentEvent) -> Event | None:
        """The event, or None for what is none."""
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
        self.heard += 1
        if sent.event == "ended":
            self.document, self.is_over = data, True
        return Event(sent.id, sent.event, data)

    def compare(self, document: Mapping[str, Any]) -> list[Event]:
        """What happened since the last document, for a server without events."""
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
