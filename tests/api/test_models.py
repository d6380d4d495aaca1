"""Listings, model status, start and stop; health."""

from __future__ import annotations

import threading

import httpx
import pytest
import redis
from kombu.exceptions import OperationalError

from modelmill.broker import MAX_WAITING_BELLS, Bells, node_queue
from modelmill.store import ClaimRequest, WorkerStore
from tests.support.processes import wait_until


def announce(store: WorkerStore, node: str, status: str | None, **more: object) -> None:
    """Plays a worker node that serves noop, and a model that only it knows."""
    models = {"noop": ["zero-shot-image-classification"], "its-own": ["text-embedding"]}
    store.announce(node, "parent", {"models": models}, ttl_s=60)
    states = {} if status is None else {"noop": {"status": status, **more}}
    store.announce(node, "child", {"models": states}, ttl_s=60)


def test_listings_are_lists_of_names(api: httpx.Client) -> None:
    listed = api.get("/api/tasks").json()
    assert listed == sorted(listed)
    assert {"image-classification", "text-embedding", "zero-shot-image-classification"} <= set(listed)
    assert {"conse-lite0", "minilm", "noop"} <= set(api.get("/api/models").json())
    assert "minilm" in api.get("/api/tasks/text-embedding/models").json()
    assert "noop" not in api.get("/api/tasks/text-embedding/models").json()
    tasks = ["text-embedding", "sentence-similarity", "zero-shot-classification"]
    assert api.get("/api/models/minilm/tasks").json() == tasks


def test_unknown_names_in_listings_are_problems(api: httpx.Client) -> None:
    for address, code in (
        ("/api/tasks/text-embeding/models", "task_not_found"),
        ("/api/models/minilmm/tasks", "model_not_found"),
        ("/api/models/minilmm/status", "model_not_found"),
    ):
        response = api.get(address)
        assert (response.status_code, response.json()["code"]) == (404, code)
        assert "Did you mean" in response.json()["detail"]


def test_a_model_that_only_a_worker_knows_is_listed_while_it_lives(
    api: httpx.Client, store: WorkerStore
) -> None:
    announce(store, "n1", None)
    assert "its-own" in api.get("/api/models").json()
    assert api.get("/api/models/its-own/tasks").json() == ["text-embedding"]


def test_the_status_of_a_model_is_the_best_of_its_workers(api: httpx.Client, store: WorkerStore) -> None:
    assert api.get("/api/models/noop/status").json() == {"status": "uninitialized", "jobs": [], "workers": {}}
    announce(store, "n1", "failed", error="no weights")
    failed = api.get("/api/models/noop/status").json()
    assert (failed["status"], failed["error"]) == ("failed", "no weights")
    announce(store, "n2", "loading")
    assert api.get("/api/models/noop/status").json()["status"] == "loading"
    announce(store, "n3", "running")
    status = api.get("/api/models/noop/status").json()
    assert status["status"] == "running"
    assert status["workers"].keys() == {"n1", "n2", "n3"}


def test_the_status_of_a_model_lists_its_open_jobs(api: httpx.Client, store: WorkerStore) -> None:
    body = {"image": "R0lGODdhAQABAIAAAAAAAAAAACwAAAAAAQABAAACAkQBADs=", "classes": ["x"]}
    ids = [
        api.post("/api/tasks/zero-shot-image-classification/noop/jobs", json=body).json()["id"]
        for _ in range(2)
    ]
    store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9))
    assert api.get("/api/models/noop/status").json()["jobs"] == [
        {"id": ids[0], "status": "running"},
        {"id": ids[1], "status": "starting"},
    ]


def test_starting_and_stopping_need_a_live_worker(api: httpx.Client, store: WorkerStore) -> None:
    for order in ("start", "stop"):
        refused = api.post(f"/api/models/noop/{order}")
        assert (refused.status_code, refused.json()["code"]) == (503, "no_live_worker")
        assert "modelmill worker" in refused.json()["detail"]
    announce(store, "n1", None)
    started = api.post("/api/models/noop/start")
    assert (started.status_code, started.json()["status"]) == (202, "starting")


def test_an_order_that_does_not_fit_into_a_workers_queue_is_refused(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    announce(store, "n1", None)
    announce(store, "n2", None)
    raw_redis.lpush(node_queue("n2"), *["{}"] * MAX_WAITING_BELLS)
    for order in ("start", "stop"):
        refused = api.post(f"/api/models/noop/{order}")
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert "could not be sent to n2." in refused.json()["detail"]
        assert refused.headers["Retry-After"] == "2"
    raw_redis.delete(node_queue("n2"))
    assert api.post("/api/models/noop/stop").status_code == 202
    # When the request is answered, the order has been sent.
    assert raw_redis.llen(node_queue("n2")) == 1


def test_an_order_that_the_broker_does_not_take_is_refused(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(store, "n1", None)
    announce(store, "n2", None)
    answers = threading.Event()

    def fail(*_: object) -> int:
        raise OperationalError("connection refused")

    def hang(*_: object) -> int:
        answers.wait(30)
        return 0

    monkeypatch.setattr("modelmill_api.bells.ORDER_TIMEOUT_S", 0.2)
    for broken in (fail, hang):
        monkeypatch.setattr(Bells, "_waiting", broken)
        refused = api.post("/api/models/noop/start")
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert "could not be sent to n1, n2." in refused.json()["detail"]
        assert "connection refused" not in refused.text
    # The broker answers again. Orders that were taken back before they were begun are not sent.
    answers.set()
    wait_until(lambda: raw_redis.llen(node_queue("n1")), what="the order that was being sent")
    # On a busy machine, 0.2 s are not enough for an order that is sent.
    monkeypatch.setattr("modelmill_api.bells.ORDER_TIMEOUT_S", 5.0)
    assert api.post("/api/models/noop/stop").status_code == 202
    assert raw_redis.llen(node_queue("n2")) == 1


def test_readiness_tells_the_store_and_apart_from_it_the_workers(
    api: httpx.Client, store: WorkerStore
) -> None:
    ready = api.get("/health/ready").json()
    assert ready | {"warnings": []} == {"status": "ready", "redis": "up", "models": {}, "warnings": []}
    announce(store, "n1", None)
    announce(store, "n2", "running")
    assert api.get("/health/ready").json()["models"] == {"noop": 2, "its-own": 2}
