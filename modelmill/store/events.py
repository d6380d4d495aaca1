"""The events of a job, in order, for clients that follow it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from modelmill.store import keys
from modelmill.store.connection import StoreConnection

AT_ONCE = 100
"""Most events that are read at once."""

Kind = Literal["started", "progress", "log", "ended"]

STARTED_ID = "0-1"
"""Comes before every id of a stream."""
_LAST = 2**64 - 1
_ID = re.compile("([0-9]{1,20})-([0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class Event:
    """One event of a job."""

    id: str
    """Its place in the order of the job's events: ``{ms}-{n}``, as Redis names entries of a stream."""
    kind: Kind
    data: bytes
    """JSON; empty for ``started`` and ``ended``, whose data is in the record."""


def cursor_of(text: str) -> str:
    """The id of an event, as a client sends it back. Other text becomes empty, which comes before all
    events."""
    match = _ID.fullmatch(text)
    milliseconds, number = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < max(milliseconds, number) <= _LAST:
        return ""
    return f"{milliseconds}-{number}"


def is_end(cursor: str) -> bool:
    """Whether this is the id of an ``ended`` event: no event follows."""
    return cursor.endswith(f"-{_LAST}")


class EventStore:
    """Reads the events of jobs. If Redis fails, it raises ``ModelmillError``."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection

    async def after(self, job_id: str, cursor: str) -> list[Event] | None:
        """The next events of a job, oldest first; an empty list if nothing has happened; None without a job.

        A list that is not empty may not hold all of them: ask again, after its last event.

        Args:
            job_id: The job.
            cursor: The id of the event that was seen last; empty for the first events.
        """
        if is_end(cursor):
            cursor = ""
        # The record comes first: if the job has ended by then, the stream that is read after it is complete.
        record, entries = await self._connection.read(
            ("HMGET", keys.JOB + job_id, "task", "started_ms", "finished_ms", "gone"),
            ("XRANGE", keys.EVENTS + job_id, f"({cursor}" if cursor else "-", "+", "COUNT", AT_ONCE),
        )
        task, started_ms, finished_ms, gone = record
        if task is None or gone is not None:
            return None
        events = []
        # A job that was given back before it ran has not started. A client that saw it start is told
        # that as well.
        if started_ms is not None and not cursor:
            events.append(Event(STARTED_ID, "started", b""))
        # Without a start in the record, entries are left for the next call, when the start before them
        # is known.
        if started_ms is not None or cursor:
            events += [_event(*entry) for entry in entries]
        if finished_ms is not None and len(entries) < AT_ONCE:
            events.append(Event(f"{int(finished_ms)}-{_LAST}", "ended", b""))
        return events


def _event(entry_id: bytes, fields: list[bytes]) -> Event:
    content = dict(zip(fields[::2], fields[1::2], strict=True))
    return Event(entry_id.decode(), cast("Kind", content[b"type"].decode()), content[b"data"])
