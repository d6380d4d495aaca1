"""Position, estimate and reason in the document of a job that has not ended."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
import redis

from modelmill.states import Status
from modelmill.store import ClaimRequest, Outcome, WorkerStore, keys
from modelmill_tasks.shared.examples import CAT
from tests.support.api import BODY, TASK
from tests.support.processes import wait_until


def submit(client: httpx.Client, **more: object) -> str:
    return str(client.post(f"{TASK}/noop/jobs", json=BODY | more).headers["location"])


def announce(store: WorkerStore, node: str, status: str | None) -> None:
    models = {"noop": ["zero-shot-image-classification"]}
    states = {} if status is None else {"noop": {"status": status}}
    store.announce(node, "parent", {"models": models}, ttl_s=60)
    store.announce(node, "child", {"models": states}, ttl_s=60)


def outlook(client: httpx.Client, address: str) -> tuple[Any, Any, Any]:
    job = client.get(address).json()
    return job["position"], job["eta_seconds"], job["eta_reason"]


def test_the_position_counts_those_before(api: httpx.Client) -> None:
    addresses = [submit(api) for _ in range(3)]
    assert [outlook(api, address)[0] for address in addresses] == [0, 1, 2]
    urgent = submit(api, lane="interactive")
    assert outlook(api, urgent)[0] == 0
    assert outlook(api, addresses[2])[0] == 3


def test_without_a_worker_there_is_no_estimate(api: httpx.Client, raw_redis: redis.Redis) -> None:
    raw_redis.hset(keys.RATES, "noop", "10")
    assert outlook(api, submit(api)) == (0, None, "no live worker")


@pytest.mark.parametrize(
    ("statuses", "reason"),
    [
        ([None], "model not loaded"),
        (["stopped", "failed"], "model not loaded"),
        (["failed", "failed"], "model failed to load"),
        (["failed", "loading"], "loading model"),
        (["loading", "running"], "behind 1 job"),
    ],
)
def test_the_reason_is_what_the_job_waits_for(
    api: httpx.Client, store: WorkerStore, statuses: list[str | None], reason: str
) -> None:
    for number, status in enumerate(statuses):
        announce(store, f"n{number}", status)
    submit(api)
    assert outlook(api, submit(api)) == (1, None, reason)


def test_the_estimate_is_made_from_what_the_workers_did(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    announce(store, "n1", "running")
    announce(store, "n2", "running")
    store.report_rate("noop", 2.5)
    addresses = [submit(api) for _ in range(15)]
    assert outlook(api, addresses[0]) == (0, 0.2, "next")
    assert outlook(api, addresses[14]) == (14, 3.0, "behind 14 jobs")


def test_a_worker_that_comes_is_seen_within_seconds(api: httpx.Client, store: WorkerStore) -> None:
    address = submit(api)
    assert outlook(api, address)[2] == "no live worker"
    announce(store, "n1", "running")
    wait_until(lambda: outlook(api, address)[2] == "next", timeout_s=5)


def test_a_job_that_runs_is_in_no_queue(api: httpx.Client, store: WorkerStore) -> None:
    address = submit(api)
    store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9))
    assert outlook(api, address) == (None, None, "running")
    assert "progress" not in api.get(address).json()


def test_a_batched_job_shows_its_progress(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    body = BODY | {"image": [CAT] * 4}
    address = api.post(f"{TASK}/batched/noop/jobs", json=body).headers["location"]
    assert "progress" not in api.get(address).json()
    (job,) = store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9)).jobs
    running = api.get(address).json()
    assert (running["progress"], running["eta_seconds"]) == (
        {"done": 0, "total": 4, "unit": "items"},
        None,
    )
    raw_redis.hset(keys.PARTS + job.id, mapping={"0": "{}", "1": "{}", "2": "{}"})
    running = api.get(address).json()
    assert running["progress"] == {"done": 3, "total": 4, "unit": "items"}
    assert 0 <= running["eta_seconds"] < 10
    store.settle([Outcome(job.id, "fence", Status.COMPLETE, b"[{},{},{},{}]")])
    ended = api.get(address).json()
    assert ended["status"] == "complete"
    assert ended.keys().isdisjoint({"progress", "position", "eta_seconds", "eta_reason"})
