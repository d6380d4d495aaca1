"""Jobs with a body that the test models answer, submitted to the store without an API."""

from __future__ import annotations

import asyncio
import json
import uuid

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ApiStore, JobRecord, Submission, WorkerStore
from modelmill_tasks.shared.examples import CAT
from tests.support.store import read_job

TASK = "zero-shot-image-classification"


def submit(settings: Settings, name: str, *classes: str) -> list[str]:
    async def act() -> list[str]:
        store = ApiStore(settings)
        ids = []
        for each in classes:
            body = json.dumps({"image": CAT, "classes": [each, "other"]}).encode()
            ids.append((await store.submit(Submission(str(uuid.uuid4()), TASK, name, body))).id)
        await store.close()
        return ids

    return asyncio.run(act())


def submit_batched(settings: Settings, name: str, items: int, classes: int = 2) -> str:
    body = json.dumps({"image": [CAT] * items, "classes": [str(n) for n in range(classes)]}).encode()
    job = Submission(str(uuid.uuid4()), TASK, name, body, batched=True, items=items)

    async def act() -> None:
        async_store = ApiStore(settings)
        await async_store.submit(job)
        await async_store.close()

    asyncio.run(act())
    return job.id


def records(store: WorkerStore, ids: list[str]) -> list[JobRecord]:
    found = [read_job(store, job_id) for job_id in ids]
    return [record for record in found if record is not None]


def are_complete(store: WorkerStore, ids: list[str]) -> bool:
    return all(record.status is Status.COMPLETE for record in records(store, ids))
