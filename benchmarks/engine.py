"""The engine by itself: bursts, scale-out and idle latency. ``python -m benchmarks.engine``."""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import time
import uuid

import httpx

from benchmarks.system import System, running
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


def burst() -> None:
    """1,000 jobs at once on noop: batches, counted as they ran."""
    with running("cpu", "noop") as system:
        seconds, sizes = asyncio.run(drain_time(system, "noop", 1000, 64))
    # A batch of n appears n times in the list.
    batches = sum(1 / size for size in sizes)
    print(
        f"burst of 1000 on noop: {seconds:.2f} s, {batches:.0f} batches, mean size {1000 / batches:.1f} of 64"
    )


def scale() -> None:
    """2,000 jobs on a runner that sleeps 50 ms a batch of 16, with one, two and four workers."""
    times = {}
    for workers in (1, 2, 4):
        with running(f"cpu:{workers}", "sleep") as system:
            times[workers], _ = asyncio.run(drain_time(system, "sleep", 2000, 16))
        print(f"{workers} workers: {times[workers]:.2f} s, {times[1] / times[workers]:.2f} times one")


def idle(rounds: int = 100) -> None:
    """One job at a time on an idle system, against a direct call in this process."""
    from backends.loader import load
    from benchmarks.system import MODELS
    from modelmill.catalogue import Catalogue

    noop = load("noop", Catalogue.load(MODELS))
    direct, through = [], []
    with running("cpu", "noop") as system, httpx.Client(base_url=system.url) as client:
        for _ in range(rounds):
            started = time.monotonic()
            noop.run(TASK, INPUTS)
            direct.append(time.monotonic() - started)
            started = time.monotonic()
            response = client.post(f"/api/tasks/{TASK}/noop/jobs", json=INPUTS, headers={"Prefer": "wait=10"})
            through.append(time.monotonic() - started)
            assert response.json()["status"] == "complete", response.text
    added = (statistics.median(through) - statistics.median(direct)) * 1000
    print(f"idle: {added:.1f} ms added to the direct call, median of {rounds}")


def main() -> None:
    print(f"{os.cpu_count()} cores")
    burst()
    idle()
    scale()


if __name__ == "__main__":
    main()
