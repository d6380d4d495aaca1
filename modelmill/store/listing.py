"""Many jobs of one caller at once: their pages, their statuses, and their results."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from modelmill.states import Status
from modelmill.store import keys
from modelmill.store.connection import StoreConnection
from modelmill.store.records import JobRecord

MAX_SCANNED = 2000
"""Most jobs that one page searches. If a filter lets few through, the others are on the next page."""
SCAN = 200
READ = 16
"""Records read in one round trip, each with a result of up to ``INLINE_BYTES``."""

_FILTERED = ("task", "model", "status", "tags", "gone")
_FIELDS = (
    "task",
    "model",
    "batched",
    "lane",
    "caller",
    "status",
    "items",
    "deliveries",
    "created_ms",
    "started_ms",
    "finished_ms",
    "expires_ms",
    "error",
    "details",
    "progress",
    "metadata",
    "tags",
    "cancel",
    "gone",
)
"""All fields of a document, without the result, which may be large."""


@dataclass(frozen=True, slots=True)
class JobFilter:
    """Which jobs are wanted. None, or an empty collection, lets all through."""

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
    """Where the next page begins; None if this is the last page."""


class JobListing:
    """Reads many jobs. If Redis fails, every method raises ``ModelmillError``.

    Args:
        connection: To Redis.
        get: Reads one job with its result, which may be large.
    """

    def __init__(
        self, connection: StoreConnection, get: Callable[[str], Awaitable[JobRecord | None]]
    ) -> None:
        self._connection = connection
        self._get = get

    async def page(self, caller: str, wanted: JobFilter, before: int | None, limit: int) -> Page:
        """The caller's jobs that ``wanted`` lets through, newest first.

        Args:
            caller: The owner of the jobs.
            wanted: Which of them.
            before: ``Page.before`` of the page before. Jobs that come meanwhile are newer, so they
                change no later page.
            limit: Most jobs of this page.
        """
        found: list[JobRecord] = []
        scanned = 0
        while scanned < MAX_SCANNED:
            count = SCAN if wanted else limit - len(found) + 1
            entries = await self._entries(caller, before, count)
            scanned += len(entries)
            fitting = await self._fitting(wanted, [job_id for job_id, _ in entries])
            taken = fitting[: limit - len(found)]
            left = set(fitting[len(taken) :])
            records = await self._records(taken)
            for job_id, sequence in entries:
                if len(found) == limit:
                    return Page(found, before)
                if job_id in left:
                    break  # some jobs before it have been removed meanwhile, so this one has room on the page
                before = sequence
                if job_id in records and wanted.fits(*_traits(record := records[job_id])):
                    found.append(record)
            else:
                if len(entries) < count:
                    return Page(found, None)
        return Page(found, before)

    async def statuses(self, caller: str, job_ids: Sequence[str]) -> dict[str, Status | None]:
        """The statuses of jobs, in one round trip; None for a job that does not exist or is not the
        caller's."""
        rows = await self._connection.read(
            *(("HMGET", keys.JOB + job_id, "status", "caller", "gone") for job_id in job_ids)
        )
        return {
            job_id: Status(status.decode()) if status and gone is None and owner.decode() == caller else None
            for job_id, (status, owner, gone) in zip(job_ids, rows, strict=True)
        }

    async def read(self, job_ids: Sequence[str]) -> AsyncIterator[JobRecord]:
        """Those of ``job_ids`` that exist, with their results. Only a few are in memory at a time."""
        for start in range(0, len(job_ids), READ):
            some = job_ids[start : start + READ]
            rows = await self._connection.read(*(("HGETALL", keys.JOB + job_id) for job_id in some))
            for job_id, fields in zip(some, rows, strict=True):
                if b"task" not in fields or b"gone" in fields:
                    continue
                if fields.keys() & {b"out", b"out_blob"}:
                    # A large result is not in the record.
                    record = await self._get(job_id)
                    if record is not None:
                        yield record
                else:
                    yield JobRecord.from_hash(job_id, fields, fields.get(b"result"))

    async def _entries(self, caller: str, before: int | None, count: int) -> list[tuple[str, int]]:
        newest = "+inf" if before is None else f"({before}"
        (rows,) = await self._connection.read(
            ("ZRANGE", keys.JOBS + caller, newest, "-inf", "BYSCORE", "REV", "LIMIT", 0, count, "WITHSCORES")
        )
        return [(job_id.decode(), int(score)) for job_id, score in rows]

    async def _fitting(self, wanted: JobFilter, job_ids: Sequence[str]) -> list[str]:
        """Those that the filter lets through. Only the few small fields that it needs are read."""
        if not wanted or not job_ids:
            return list(job_ids)
        rows = await self._connection.read(*(("HMGET", keys.JOB + job_id, *_FILTERED) for job_id in job_ids))
        return [
            job_id
            for job_id, (task, model, status, tags, gone) in zip(job_ids, rows, strict=True)
            if task is not None
            and gone is None
            and wanted.fits(task.decode(), model.decode(), Status(status.decode()), json.loads(tags or "[]"))
        ]

    async def _records(self, job_ids: Sequence[str]) -> Mapping[str, JobRecord]:
        if not job_ids:
            return {}
        rows = await self._connection.read(*(("HMGET", keys.JOB + job_id, *_FIELDS) for job_id in job_ids))
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
