"""Passes of many steps: they report their progress, and end early if their job is canceled."""

from __future__ import annotations

import time
from collections.abc import Callable

import httpx
import redis

from modelmill.store import keys
from tests.support.api import TASK, documents, submit_jobs, wait_all
from tests.support.processes import wait_until
from tests.support.workers import Workers

StartWorkers = Callable[..., Workers]


def test_a_job_of_many_steps_tells_how_far_it_is_and_outlives_the_limit_of_a_batch(
    api: httpx.Client, start_workers: StartWorkers
) -> None:
    # Three seconds of steps, each of them far shorter than the limit.
    start_workers(MODELMILL_BATCH_TIMEOUT_S="1.5")
    (job,) = submit_jobs(api, "steps")
    seen = []

    def ended() -> bool:
        (document,) = documents(api, [job])
        if document.get("progress"):
            seen.append(document)
        return str(document["status"]) in ("complete", "failed")

    wait_until(ended, what="the end of the job")

    (done,) = documents(api, [job])
    assert (done["status"], done["deliveries"]) == ("complete", 1)
    assert done.get("progress") is None, "an ended job shows no progress"
    steps = [document["progress"]["done"] for document in seen]
    assert steps == sorted(steps)
    assert len(set(steps)) > 3
    assert all(document["progress"]["total"] == 60 for document in seen)
    assert {document["progress"]["unit"] for document in seen} == {"steps"}
    assert 0 < seen[-1]["eta_seconds"] < seen[0]["eta_seconds"] < 15


def test_a_canceled_job_of_many_steps_stops_between_two_of_them(
    api: httpx.Client, start_workers: StartWorkers, raw_redis: redis.Redis
) -> None:
    start_workers()
    (job,) = submit_jobs(api, "steps")
    wait_until(lambda: documents(api, [job])[0].get("progress"), what="the first steps")

    asked_at = time.monotonic()
    assert api.post(f"{TASK}/jobs/{job}/cancel").status_code < 300
    (document,) = wait_all(api, [job])

    assert document["status"] == "canceled"
    # The heartbeat of these tests is 0.4 s, and a step 0.05 s; all steps take 3 s.
    assert time.monotonic() - asked_at < 2.5
    # The worker is free: the next job does not wait for the rest of the steps.
    wait_all(api, submit_jobs(api, "noop"), timeout_s=4)
    assert raw_redis.zcard(keys.LEASES) == 0
