"""What happened to a job, in order, for those who follow it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal, cast

from modelmill.store import keys
from modelmill.store.api_store import ApiStore

AT_ONCE = 100
"""At most so many events are read at once."""

Kind = Literal["started", "progress", "log", "ended"]

STARTED_ID = "0-1"
"""Before every id of a stream."""
_LAST = 2**64 - 1
_ID = re.compile("([0-9]{1,20})-([0-9]{1,20})")


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened to a job."""

    id: str
    """Its place in the order of the job's events: ``{ms}-{n}``, as Redis names entries of a stream."""
    kind: Kind
    data: bytes
    """JSON; empty for ``started`` and ``ended``, of which the record tells."""


def cursor_of(text: str) -> str:
    """The id of an event as somebody else gives it back; empty, which is before all, for anything else."""
    match = _ID.fullmatch(text)
    milliseconds, number = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 0 < max(milliseconds, number) <= _LAST:
        return ""
    return f"{milliseconds}-{number}"


def is_end(cursor: str) -> bool:
    """Whether the id is that of an ``ended``: nothing follows."""
    return cursor.endswith(f"-{_LAST}")


async def events_after(store: ApiStore, job_id: str, cursor: str) -> list[Event] | None:
    """The next of a job's events, oldest first; none when nothing has happened since; None without a job.

    An answer that is not empty may not be all: ask again, after the last of them.

    Args:
        store: Where to look.
        job_id: The job.
        cursor: The id of the event that was seen last; empty for the first ones.

    Raises:
        ModelmillError: as every method of the store.
    """
    if is_end(cursor):
        cursor = ""
    # First the record: of a job that has ended by then, all there is stands in the stream read after.
    record, entries = await store.ask(
        ("HMGET", keys.JOB + job_id, "task", "started_ms", "finished_ms", "gone"),
        ("XRANGE", keys.EVENTS + job_id, f"({cursor}" if cursor else "-", "+", "COUNT", AT_ONCE),
    )
    task, started_ms, finished_ms, gone = record
    if task is None or gone is not None:
        return None
    events = []
    # One that was given back unrun has not started; whoever saw it start is told of that as well.
    if started_ms is not None and not cursor:
        events.append(Event(STARTED_ID, "started", b""))
    if started_ms is not None or cursor:
        events += [_event(*entry) for entry in entries]
    # What came between the two reads is left for the next time, when the start that precedes it is known.
    if finished_ms is not None and len(entries) < AT_ONCE:
        events.append(Event(f"{int(finished_ms)}-{_LAST}", "ended", b""))
    return events


def _event(entry_id: bytes, fields: list[bytes]) -> Event:
    content = dict(zip(fields[::2], fields[1::2], strict=True))
    return Event(entry_id.decode(), cast("Kind", content[b"type"].decode()), content[b"data"])
