"""Submits, claims and settles jobs on the store itself, for the model ``noop``."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import (
    ApiStore,
    ClaimReply,
    ClaimRequest,
    JobRecord,
    Outcome,
    Released,
    Submission,
    WorkerStore,
    keys,
)

T = TypeVar("T")
MODEL = "noop"


def run(settings: Settings, act: Callable[[ApiStore], Coroutine[Any, Any, T]]) -> T:
    async def main() -> T:
        store = ApiStore(settings)
        try:
            return await act(store)
        finally:
            await store.close()

    return asyncio.run(main())


def submission(**changes: Any) -> Submission:
    fields: dict[str, Any] = {"id": str(uuid.uuid4()), "task": "a-task", "model": MODEL, "body": b'{"n": 1}'}
    return Submission(**fields | changes)


def submit(settings: Settings, *jobs: Submission) -> list[str]:
    async def act(store: ApiStore) -> list[str]:
        return [(await store.submit(job)).id for job in jobs]

    return run(settings, act)


def claim(
    store: WorkerStore, count: int = 10, fence: str | None = None, max_bytes: int = 10**9
) -> ClaimReply:
    return store.claim(ClaimRequest(MODEL, fence or uuid.uuid4().hex, "node", count, max_bytes))


def read_job(store: WorkerStore, job_id: str) -> JobRecord | None:
    """The job, also one that was deleted while it runs."""
    fields = cast("dict[bytes, bytes]", store._redis.hgetall(keys.JOB + job_id))
    if b"task" not in fields:
        return None
    result = fields.get(b"result")
    if b"out" in fields:
        result = cast("bytes | None", store._redis.get(fields[b"out"]))
    if b"out_blob" in fields:
        name = fields[b"out_blob"].decode()
        result = store._read_blobs([name])[name]
    return JobRecord.from_hash(job_id, fields, result)


def may_ring(store: WorkerStore, model: str) -> bool:
    """Whether no bell for the model is on its way. Then one counts as sent from now on."""
    set_now = store._redis.set(keys.BELL_SENT + model, "1", nx=True, px=keys.BELL_SENT_TTL_MS)
    return bool(set_now)


def complete(claims: ClaimReply, result: bytes = b'{"ok":true}') -> list[Outcome | Released]:
    return [Outcome(job.id, job.fence, Status.COMPLETE, result) for job in claims.jobs]
