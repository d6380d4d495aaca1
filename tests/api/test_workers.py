"""The list of workers."""

from __future__ import annotations

import httpx

from modelmill.settings import Settings
from modelmill.store import WorkerStore
from tests.support.servers import ApiServer

TASKS = ["zero-shot-image-classification"]
PARENT = {
    "host": "gpu-host",
    "pid": 41,
    "device": "cuda",
    "cuda_visible_devices": "1",
    "models": {"noop": TASKS, "slow": TASKS, "conse-lite0": TASKS},
    "started_at": 1_700_000_000.5,
    "version": "0.1.0",
}
CHILD = {
    "pid": 42,
    "models": {
        "noop": {
            "status": "running",
            "since": 1_700_000_001.0,
            "memory_mib": 7,
            "load_s": 0.5,
            "error": None,
        },
        "slow": {"status": "failed", "since": 1_700_000_002.0, "error": "no weights"},
        "conse-lite0": {"status": "running", "since": 1_700_000_003.0, "batch_size": 8},
    },
}


def test_without_workers_the_list_is_empty(api: httpx.Client) -> None:
    assert api.get("/api/workers").json() == []


def test_a_models_status_tells_times_as_the_list_of_workers_does(
    api: httpx.Client, store: WorkerStore
) -> None:
    store.announce("gpu-host-1", "parent", PARENT, ttl_s=60)
    store.announce("gpu-host-1", "child", CHILD, ttl_s=60)

    said = api.get("/api/models/conse-lite0/status").json()["workers"]["gpu-host-1"]
    listed = next(
        model for model in api.get("/api/workers").json()[0]["models"] if model["name"] == "conse-lite0"
    )

    assert said == {"status": "running", "since": "2023-11-14T22:13:23Z", "batch_size": 8}
    assert listed["since"] == said["since"]


def test_a_worker_is_listed_with_its_device_and_its_models(api: httpx.Client, store: WorkerStore) -> None:
    store.announce("gpu-host-1", "parent", PARENT, ttl_s=60)
    store.announce("gpu-host-1", "child", CHILD, ttl_s=60)
    (worker,) = api.get("/api/workers").json()
    models = worker.pop("models")
    assert worker == {
        "name": "gpu-host-1",
        "host": "gpu-host",
        "device": "cuda",
        "cuda_visible_devices": "1",
        "pid": 41,
        "child_pid": 42,
        "started_at": "2023-11-14T22:13:20.500000Z",
        "version": "0.1.0",
    }
    assert models[0] == {
        "name": "noop",
        "tasks": TASKS,
        "status": "running",
        "since": "2023-11-14T22:13:21Z",
        "memory_mib": 7,
        "load_s": 0.5,
    }
    assert (models[1]["status"], models[1]["error"]) == ("failed", "no weights")
    # All that nodes announce about a model is passed on, even fields unknown here.
    assert models[2]["batch_size"] == 8


def test_a_worker_that_says_little_is_listed_too(api: httpx.Client, store: WorkerStore) -> None:
    store.announce("n1", "parent", {"models": {"noop": TASKS}}, ttl_s=60)
    assert api.get("/api/workers").json() == [
        {"name": "n1", "models": [{"name": "noop", "tasks": TASKS, "status": "uninitialized"}]}
    ]


def test_a_worker_that_left_is_gone(api: httpx.Client, store: WorkerStore) -> None:
    store.announce("n1", "parent", PARENT, ttl_s=60)
    store.announce("n2", "parent", PARENT, ttl_s=60)
    store.retire("n1")
    assert [worker["name"] for worker in api.get("/api/workers").json()] == ["n2"]


def test_without_its_store_nobody_knows_the_workers(settings: Settings) -> None:
    server = ApiServer(settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"}))
    try:
        response = httpx.get(f"{server.url}/api/workers", timeout=30)
        assert (response.status_code, response.json()["code"]) == (503, "store_unavailable")
    finally:
        server.close()


def test_the_document_of_the_api_describes_a_worker(api: httpx.Client) -> None:
    schemas = api.get("/openapi.json").json()["components"]["schemas"]
    assert {"host", "device", "cuda_visible_devices", "models"} <= schemas["Worker"]["properties"].keys()
    assert "description" in schemas["WorkerModel"]["properties"]["status"]
