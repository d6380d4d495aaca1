"""Submits, claims and settles jobs on the store itself, for the model ``noop``."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ApiStore, ClaimReply, Outcome, Released, Submission, WorkerStore

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
    return store.claim(MODEL, fence or uuid.uuid4().hex, "node", count, max_bytes)


def complete(claims: ClaimReply, result: bytes = b'{"ok":true}') -> list[Outcome | Released]:
    return [Outcome(job.id, job.fence, Status.COMPLETE, result) for job in claims.jobs]
