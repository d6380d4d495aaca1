"""The engine by itself, without HTTP: how long workers take for jobs that wait already."""

from __future__ import annotations

import asyncio
import json
import uuid

from benchmarks.system import System
from modelmill.broker import Bells, make_celery
from modelmill.settings import Settings
from modelmill.store import AsyncJobStore, Submission
from tasks.examples import CAT

TASK = "zero-shot-image-classification"
INPUTS = {"image": CAT, "classes": ["cat", "dog"]}
BODY = json.dumps(INPUTS).encode()


async def drain_time(system: System, model: str, count: int, bell_every: int) -> tuple[float, list[int]]:
    """Seconds from the first start of ``count`` jobs to their last end, and the batch size of each job.

    Both times are the job store's own, so that looking on costs nothing.
    """
    settings = Settings(redis_url=system.redis_url)
    store, bells = AsyncJobStore(settings), Bells(make_celery(settings), lambda _: None)
    jobs = [Submission(str(uuid.uuid4()), TASK, model, BODY, bell_every=bell_every) for _ in range(count)]
    for start in range(0, count, 50):
        for accepted in await asyncio.gather(*map(store.submit, jobs[start : start + 50])):
            if accepted.bell:
                bells.ring(model)
    while await store.unfinished():
        await asyncio.sleep(0.05)
    records = [record for job in jobs if (record := await store.get(job.id))]
    await store.close()
    bells.close()
    started = min(record.started_at or 0.0 for record in records)
    finished = max(record.finished_at or 0.0 for record in records)
    return finished - started, [int(record.details["batch_size"]) for record in records]
