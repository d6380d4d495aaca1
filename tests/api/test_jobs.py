"""Submit and read, over a real socket; the store plays the worker where one is needed."""

from __future__ import annotations

import uuid
from typing import Any

import httpx
import pytest
import redis

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ClaimRequest, WorkerStore
from modelmill_tasks.shared.examples import CAT
from tests.support.api import TASK, finish_one
from tests.support.servers import ApiServer

BODY: dict[str, Any] = {"image": CAT, "classes": ["cat", "dog"], "config": {}}


def test_a_submitted_job_is_accepted_with_its_address(api: httpx.Client) -> None:
    response = api.post(f"{TASK}/noop/jobs", json=BODY)
    assert response.status_code == 202
    assert response.json().keys() == {"id", "status"}
    assert response.json()["status"] == "starting"
    assert str(uuid.UUID(response.json()["id"])) == response.json()["id"]
    assert response.headers["location"] == f"{TASK}/jobs/{response.json()['id']}"


def test_a_job_is_read_from_acceptance_to_completion(api: httpx.Client, store: WorkerStore) -> None:
    address = api.post(f"{TASK}/noop/jobs", json=BODY).headers["location"]
    waiting = api.get(address)
    assert (waiting.json()["status"], waiting.headers["retry-after"]) == ("starting", "1")
    assert waiting.json().keys().isdisjoint({"result", "error"})
    finish_one(store, result=b'{"probabilities":[0.8,0.2]}', details={"batch_size": 3})
    done = api.get(address).json()
    assert done["result"] == {"probabilities": [0.8, 0.2]}
    assert (done["status"], done["batch_size"], done["deliveries"], done["model"]) == (
        "complete",
        3,
        1,
        "noop",
    )
    assert done["created_at"] <= done["started_at"] <= done["finished_at"]
    assert "error" not in done
    assert api.get(f"/api/jobs/{done['id']}").json() == done


def test_a_failed_job_carries_its_error_and_no_result(api: httpx.Client, store: WorkerStore) -> None:
    address = api.post(f"{TASK}/noop/jobs", json=BODY).headers["location"]
    error = {"code": "inference_failed", "message": "It did not work.", "retryable": False}
    finish_one(store, Status.FAILED, error=error)
    failed = api.get(address).json()
    assert (failed["status"], failed["error"]) == ("failed", error)
    assert "result" not in failed


def test_a_batched_job_has_routes_of_its_own(api: httpx.Client, store: WorkerStore) -> None:
    body = {"image": [CAT, CAT, CAT], "classes": ["cat", "dog"]}
    response = api.post(f"{TASK}/batched/noop/jobs", json=body)
    address = response.headers["location"]
    assert address == f"{TASK}/batched/jobs/{response.json()['id']}"
    assert api.get(address).json()["items"] == 3
    elsewhere = api.get(f"{TASK}/jobs/{response.json()['id']}")
    assert elsewhere.status_code == 404
    assert address in elsewhere.json()["detail"]


def test_an_unknown_job_says_how_long_results_live(api: httpx.Client) -> None:
    for job_id in (str(uuid.uuid4()), "not-an-id", "%00"):
        response = api.get(f"{TASK}/jobs/{job_id}")
        assert response.status_code == 404
        assert response.json()["code"] == "job_not_found"
        assert "24 hours" in response.json()["detail"]


def test_the_same_idempotency_key_gives_the_same_job(api: httpx.Client) -> None:
    headers = {"Idempotency-Key": "mine"}
    first, again = (api.post(f"{TASK}/noop/jobs", json=BODY, headers=headers) for _ in range(2))
    assert first.json() == again.json()
    other = api.post(f"{TASK}/noop/jobs", json=BODY | {"classes": ["x"]}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_conflict")


def test_a_job_can_be_canceled_once(api: httpx.Client, store: WorkerStore) -> None:
    queued = api.post(f"{TASK}/noop/jobs", json=BODY).json()["id"]
    canceled = api.post(f"{TASK}/jobs/{queued}/cancel")
    assert (canceled.status_code, canceled.json()) == (202, {"id": queued, "status": "canceled"})
    assert api.get(f"{TASK}/jobs/{queued}").json()["status"] == "canceled"
    done = api.post(f"{TASK}/noop/jobs", json=BODY).json()["id"]
    finish_one(store, result=b"{}")
    refused = api.post(f"{TASK}/jobs/{done}/cancel")
    assert (refused.status_code, refused.json()["code"]) == (409, "job_not_cancelable")
    assert "complete" in refused.json()["detail"]


def test_jobs_are_read_in_lane_order_by_workers(api: httpx.Client, store: WorkerStore) -> None:
    ids = [
        api.post(f"{TASK}/noop/jobs", json=BODY | {"lane": lane}).json()["id"]
        for lane in ("bulk", "normal", "interactive")
    ]
    claimed = store.claim(ClaimRequest("noop", "fence", "node", 3, 10**9)).jobs
    assert [job.id for job in claimed] == ids[::-1]


def test_a_full_queue_is_a_429_that_says_when_to_come_again(settings: Settings) -> None:
    server = ApiServer(settings.model_copy(update={"max_queue_depth": 1}))
    try:
        with httpx.Client(base_url=server.url) as client:
            assert client.post(f"{TASK}/noop/jobs", json=BODY).status_code == 202
            full = client.post(f"{TASK}/noop/jobs", json=BODY)
        assert (full.status_code, full.json()["code"]) == (429, "queue_full")
        assert int(full.headers["retry-after"]) > 0
    finally:
        server.close()


def test_without_its_store_the_api_lives_and_answers_503(settings: Settings) -> None:
    server = ApiServer(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    try:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            assert client.get("/health/live").json() == {"status": "live"}
            ready = client.get("/health/ready")
            assert (ready.status_code, ready.json()["status"]) == (503, "unavailable")
            for refused in (
                client.post(f"{TASK}/noop/jobs", json=BODY),
                client.get(f"{TASK}/jobs/{uuid.uuid4()}"),
            ):
                assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
                assert refused.json()["retryable"] is True
                assert int(refused.headers["retry-after"]) > 0
    finally:
        server.close()


def test_without_memory_nothing_is_accepted(settings: Settings, raw_redis: redis.Redis) -> None:
    used = raw_redis.info("memory")["used_memory"]
    raw_redis.config_set("maxmemory", int(used * 1.1))
    server = ApiServer(settings)
    try:
        with httpx.Client(base_url=server.url) as client:
            refused = client.post(f"{TASK}/noop/jobs", json=BODY)
        assert (refused.status_code, refused.json()["code"]) == (503, "store_full")
        assert int(refused.headers["retry-after"]) > 0
    finally:
        raw_redis.config_set("maxmemory", 0)
        server.close()


@pytest.mark.parametrize("part", ["", "/batched"])
def test_a_job_that_is_late_to_start_expires(api: httpx.Client, part: str) -> None:
    body = (BODY | {"image": [CAT]} if part else BODY) | {"expires_in": 0.3}
    address = api.post(f"{TASK}{part}/noop/jobs", json=body).headers["location"]
    expired = api.get(address, headers={"Prefer": "wait=20"}).json()
    assert (expired["status"], expired["error"]["code"]) == ("failed", "expired")


def test_a_job_that_started_in_time_does_not_expire(api: httpx.Client, store: WorkerStore) -> None:
    address = api.post(f"{TASK}/noop/jobs", json=BODY | {"expires_in": 0.5}).headers["location"]
    store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9))
    running = api.get(address, headers={"Prefer": "wait=1"}).json()
    assert running["status"] == "running"


@pytest.mark.parametrize("path", [f"{TASK}/noop/jobs", f"{TASK}/batched/noop/jobs"])
def test_a_job_needs_a_post(api: httpx.Client, path: str) -> None:
    response = api.put(path)
    assert (response.status_code, response.json()["code"]) == (405, "method_not_allowed")
    assert response.headers["allow"]
