"""Metrics of the API, as Prometheus reads them."""

from __future__ import annotations

import time
import uuid

import httpx
import redis
from prometheus_client.parser import text_string_to_metric_families

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ClaimRequest, Outcome, WorkerStore, keys
from tests.support.api import BODY, TASK
from tests.support.servers import ApiServer


def scrape(client: httpx.Client) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    response = client.get("/metrics")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(samples: dict[tuple[str, frozenset[tuple[str, str]]], float], name: str, **labels: str) -> float:
    return samples[name, frozenset(labels.items())]


def test_jobs_are_counted_by_their_end(api: httpx.Client, store: WorkerStore) -> None:
    for _ in range(3):
        api.post(f"{TASK}/noop/jobs", json=BODY)
    jobs = store.claim(ClaimRequest("noop", uuid.uuid4().hex, "node", 3, 10**9)).jobs
    store.settle([Outcome(job.id, job.fence, Status.COMPLETE, b"{}") for job in jobs])
    queued = api.post(f"{TASK}/noop/jobs", json=BODY).json()["id"]
    api.post(f"{TASK}/jobs/{queued}/cancel")
    samples = scrape(api)
    labels = {"task": "zero-shot-image-classification", "model": "noop"}
    assert value(samples, "modelmill_jobs_total", status="complete", **labels) == 3
    assert value(samples, "modelmill_jobs_total", status="canceled", **labels) == 1
    assert value(samples, "modelmill_store_up") == 1
    assert value(samples, "modelmill_queue_depth", model="noop") == 0
    assert value(samples, "modelmill_queue_oldest_seconds", model="noop") == 0


def test_queues_show_their_depth_and_age(api: httpx.Client, raw_redis: redis.Redis) -> None:
    ids = [api.post(f"{TASK}/noop/jobs", json=BODY).json()["id"] for _ in range(2)]
    raw_redis.hincrby(keys.JOB + ids[0], "created_ms", -90_000)
    samples = scrape(api)
    assert value(samples, "modelmill_queue_depth", model="noop") == 2
    assert 90 <= value(samples, "modelmill_queue_oldest_seconds", model="noop") < 100


def test_the_oldest_job_counts_in_whichever_lane_it_waits(api: httpx.Client, raw_redis: redis.Redis) -> None:
    for lane, age_s in (("interactive", 0), ("normal", 40), ("bulk", 90)):
        job_id = api.post(f"{TASK}/noop/jobs", json=BODY | {"lane": lane}).json()["id"]
        raw_redis.hincrby(keys.JOB + job_id, "created_ms", -1000 * age_s)
    assert 90 <= value(scrape(api), "modelmill_queue_oldest_seconds", model="noop") < 100


def test_workers_and_their_loaded_models_are_shown(api: httpx.Client, store: WorkerStore) -> None:
    tasks = ["zero-shot-image-classification"]
    for node, status in (("n1", "running"), ("n2", "loading")):
        store.announce(node, "parent", {"models": {"noop": tasks, "slow": tasks}}, ttl_s=60)
        store.announce(node, "child", {"models": {"noop": {"status": status}}}, ttl_s=60)
    samples = scrape(api)
    assert value(samples, "modelmill_workers") == 2
    assert value(samples, "modelmill_model_loaded", model="noop", node="n1") == 1
    assert value(samples, "modelmill_model_loaded", model="noop", node="n2") == 0
    assert value(samples, "modelmill_model_loaded", model="slow", node="n1") == 0
    # An empty queue is shown if a worker serves it.
    assert value(samples, "modelmill_queue_depth", model="slow") == 0


def test_requests_are_counted_by_route_and_status(api: httpx.Client) -> None:
    address = api.post(f"{TASK}/noop/jobs", json=BODY).headers["location"]
    for _ in range(3):
        api.get(address)
    api.get(f"{TASK}/jobs/{uuid.uuid4()}")
    api.get("/nothing/here")
    api.request("PROPFIND", "/health/live")
    samples = scrape(api)
    route = f"{TASK}/jobs/{{id}}"
    count = "modelmill_http_requests_total"
    assert value(samples, count, method="POST", route=f"{TASK}/{{model}}/jobs", status="202") == 1
    assert value(samples, count, method="GET", route=route, status="200") == 3
    assert value(samples, count, method="GET", route=route, status="404") == 1
    assert value(samples, count, method="GET", route="unknown", status="404") == 1
    assert value(samples, count, method="other", route="/health/live", status="405") == 1
    assert value(samples, "modelmill_http_request_seconds_count", method="GET", route=route) == 4


def test_time_spent_waiting_is_no_latency(api: httpx.Client) -> None:
    job_id = api.post(f"{TASK}/noop/jobs", json=BODY).json()["id"]
    api.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=1"})
    samples = scrape(api)
    route = "/api/jobs/{id}"
    assert value(samples, "modelmill_http_requests_total", method="GET", route=route, status="200") == 1
    assert value(samples, "modelmill_http_request_seconds_count", method="GET", route=route) == 0


def test_without_its_store_what_is_known_is_told_soon(settings: Settings) -> None:
    server = ApiServer(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    try:
        with httpx.Client(base_url=server.url, timeout=30) as client:
            client.get("/health/live")
            started = time.monotonic()
            samples = scrape(client)
        assert time.monotonic() - started < 8
        assert value(samples, "modelmill_store_up") == 0
        live = {"method": "GET", "route": "/health/live", "status": "200"}
        assert value(samples, "modelmill_http_requests_total", **live) == 1
        assert not any(name == "modelmill_workers" for name, _ in samples)
    finally:
        server.close()
