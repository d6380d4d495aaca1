"""Many jobs of one caller at once: listed newest first, looked at, and read."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelmill.states import Status
from modelmill.store import keys
from modelmill.store.api_store import ApiStore
from modelmill.store.records import JobRecord

MAX_SCANNED = 2000
"""Jobs that one listing looks at: a filter that fits few has its next ones on the next page."""
SCAN = 200
READ = 16
"""Records read in one round trip, each with a result of up to ``INLINE_BYTES``."""

_FILTERED = ("task", "model", "status", "tags", "gone")
# All that a document says, but not its result, which may be large.
_FIELDS = (
    *("task", "model", "batched", "lane", "caller", "status", "items", "deliveries", "created_ms"),
    *("started_ms", "finished_ms", "expires_ms", "error", "details", "progress", "metadata", "tags"),
    *("cancel", "gone"),
)


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are wanted; None and nothing let all through."""

    task: str | None = None
    model: str | None = None
    statuses: Collection[Status] = ()
    tag: str | None = None

    def __bool__(self) -> bool:
        return bool(self.task or self.model or self.statuses or self.tag)

    def fits(self, task: str, model: str, status: Status, tags: Collection[str]) -> bool:
        return (
            (self.task is None or self.task == task)
            and (self.model is None or self.model == model)
            and (not self.statuses or status in self.statuses)
            and (self.tag is None or self.tag in tags)
        )


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a caller's jobs, without their results."""

    jobs: list[JobRecord]
    before: int | None
    """Where the next page begins; None when there is none."""


async def list_jobs(store: ApiStore, caller: str, wanted: JobFilter, before: int | None, limit: int) -> Page:
    """The caller's jobs that ``wanted`` lets through, newest first.

    Args:
        store: The job store.
        caller: Whose jobs.
        wanted: Which of them.
        before: What the page before said. Jobs that come meanwhile are newer, and change no later page.
        limit: At most so many.
    """
    found: list[JobRecord] = []
    scanned = 0
    while scanned < MAX_SCANNED:
        count = SCAN if wanted else limit - len(found) + 1
        entries = await _entries(store, caller, before, count)
        scanned += len(entries)
        fitting = await _fitting(store, wanted, [job_id for job_id, _ in entries])
        taken = fitting[: limit - len(found)]
        left = set(fitting[len(taken) :])
        records = await _records(store, taken)
        for job_id, sequence in entries:
            if len(found) == limit:
                return Page(found, before)
            if job_id in left:
                break  # of those before it some are gone since; so there is room for this one
            before = sequence
            if job_id in records and wanted.fits(*_traits(record := records[job_id])):
                found.append(record)
        else:
            if len(entries) < count:
                return Page(found, None)
    return Page(found, before)


async def own_statuses(store: ApiStore, caller: str, job_ids: Sequence[str]) -> dict[str, Status | None]:
    """Where jobs stand, in one round trip; None for those that are not there or somebody else's."""
    rows = await store.ask(*(("HMGET", keys.JOB + job_id, "status", "caller", "gone") for job_id in job_ids))
    return {
        job_id: Status(status.decode()) if status and gone is None and owner.decode() == caller else None
        for job_id, (status, owner, gone) in zip(job_ids, rows, strict=True)
    }


async def read_jobs(store: ApiStore, job_ids: Sequence[str]) -> AsyncIterator[JobRecord]:
    """Those of ``job_ids`` that are there, with their results; a few at a time are held in memory."""
    for start in range(0, len(job_ids), READ):
        some = job_ids[start : start + READ]
        rows = await store.ask(*(("HGETALL", keys.JOB + job_id) for job_id in some))
        for job_id, fields in zip(some, rows, strict=True):
            if b"task" not in fields or b"gone" in fields:
                continue
            if fields.keys() & {b"out", b"out_blob"}:
                # A large result, which lies elsewhere.
                record = await store.get(job_id)
                if record is not None:
                    yield record
            else:
                yield JobRecord.from_hash(job_id, fields, fields.get(b"result"))


async def _entries(store: ApiStore, caller: str, before: int | None, count: int) -> list[tuple[str, int]]:
    newest = "+inf" if before is None else f"({before}"
    (rows,) = await store.ask(
        ("ZRANGE", keys.JOBS + caller, newest, "-inf", "BYSCORE", "REV", "LIMIT", 0, count, "WITHSCORES")
    )
    return [(job_id.decode(), int(score)) for job_id, score in rows]


async def _fitting(store: ApiStore, wanted: JobFilter, job_ids: Sequence[str]) -> list[str]:
    """Those that the filter lets through, by the few small fields that it asks for."""
    if not wanted or not job_ids:
        return list(job_ids)
    rows = await store.ask(*(("HMGET", keys.JOB + job_id, *_FILTERED) for job_id in job_ids))
    return [
        job_id
        for job_id, (task, model, status, tags, gone) in zip(job_ids, rows, strict=True)
        if task is not None
        and gone is None
        and wanted.fits(task.decode(), model.decode(), Status(status.decode()), json.loads(tags or "[]"))
    ]


async def _records(store: ApiStore, job_ids: Sequence[str]) -> Mapping[str, JobRecord]:
    if not job_ids:
        return {}
    rows = await store.ask(*(("HMGET", keys.JOB + job_id, *_FIELDS) for job_id in job_ids))
    records = {}
    for job_id, row in zip(job_ids, rows, strict=True):
        fields: dict[bytes, Any] = {
            name.encode(): value for name, value in zip(_FIELDS, row, strict=True) if value is not None
        }
        if b"task" in fields and b"gone" not in fields:
            records[job_id] = JobRecord.from_hash(job_id, fields, None)
    return records


def _traits(record: JobRecord) -> tuple[str, str, Status, list[str]]:
    return record.task, record.model, record.status, record.tags
