"""A node's child, in this process, on a real job store: bells for models that do not load."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import RedisError

from modelmill.broker import make_celery, node_queue
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import WorkerStore
from modelmill_worker.config import NODE_VARIABLE, STATE_VARIABLE
from modelmill_worker.processes.child import Child
from tests.support.jobs import records, submit
from tests.support.processes import wait_until

MODELS = ["zero-shot-image-classification"]
MakeChild = Callable[..., Child]


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit statuses with which a child wanted to end its process."""
    seen: list[int] = []
    monkeypatch.setattr("modelmill_worker.processes.child.os._exit", seen.append)
    return seen


@pytest.fixture
def make_child(
    monkeypatch: pytest.MonkeyPatch, settings: Settings, store: WorkerStore, tmp_path: Path
) -> Iterator[MakeChild]:
    """Makes children without a heartbeat, and announces their parents."""
    brief = settings.model_copy(update={"linger_s": 0.0})
    monkeypatch.setattr("modelmill_worker.processes.child.get_settings", lambda: brief)
    monkeypatch.setattr("modelmill_worker.processes.child.Child._heartbeat", lambda _: None)

    made: list[Child] = []

    def make(name: str, device: str = "cpu") -> Child:
        (tmp_path / name).mkdir()
        monkeypatch.setenv(NODE_VARIABLE, name)
        monkeypatch.setenv(STATE_VARIABLE, str(tmp_path / name))
        monkeypatch.setenv("MODELMILL_DEVICE", device)
        announce(store, name)
        child = Child(make_celery(brief))
        child._announce()
        made.append(child)
        return child

    yield make
    for child in made:
        child._bells.close()
        child._drain.close()
        child._store.close()


def announce(store: WorkerStore, name: str, **states: str) -> None:
    """Announces the parent of a node and, if states of models are given, its child."""
    names = ("broken", "gpu-only", "gpu-weights", "noop")
    store.announce(name, "parent", {"models": dict.fromkeys(names, MODELS)}, 60)
    if states:
        models = {model: {"status": status} for model, status in states.items()}
        store.announce(name, "child", {"models": models, "free_mib": 1000, "device": "cpu"}, 60)


def bells_for(raw_redis: redis.Redis, node: str) -> list[list[Any]]:
    """Arguments of the messages that wait in a node's own queue."""
    found = [json.loads(message) for message in raw_redis.lrange(node_queue(node), 0, -1)]
    return [json.loads(_decoded(message))[0] for message in found]


def _decoded(message: dict[str, Any]) -> bytes:
    assert message["properties"]["body_encoding"] == "base64"
    return base64.b64decode(message["body"])


def ends(store: WorkerStore, ids: list[str]) -> set[tuple[str, str | None]]:
    return {(job.status.value, (job.error or {}).get("code")) for job in records(store, ids)}


def test_nodes_that_fail_at_the_same_time_do_not_pass_a_bell_in_circles(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis, make_child: MakeChild
) -> None:
    first, second = make_child("first"), make_child("second")
    ids = submit(settings, "broken", "a", "b")
    # When the load has failed on one node, the other node is still announced as loading.
    announce(store, "second", broken="loading")
    first.drain("broken", passed_on=True)
    wait_until(lambda: bells_for(raw_redis, "second") == [["broken", True]], what="the first hop")
    assert ends(store, ids) == {("starting", None)}
    announce(store, "first", broken="loading")
    second.drain("broken", passed_on=True)
    wait_until(lambda: bells_for(raw_redis, "first") == [["broken", True]], what="the second hop")
    assert ends(store, ids) == {("starting", None)}
    # Now the first node rests, and the second has announced that it failed.
    first.drain("broken", passed_on=True)
    assert ends(store, ids) == {("failed", "model_load_failed")}
    assert len(bells_for(raw_redis, "second")) == 1


def test_a_resting_node_leaves_a_model_to_one_that_has_it_for_any_backlog(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis, make_child: MakeChild
) -> None:
    child = make_child("own")
    announce(store, "other", broken="running")
    ids = submit(settings, "broken", *["a"] * 100)
    for count in (1, 2):
        # With the first bell the load fails here. With the second this is known.
        child.drain("broken")
        wait_until(lambda count=count: len(bells_for(raw_redis, "other")) == count, what="a hop")  # type: ignore[misc]
    assert ends(store, ids) == {("starting", None)}


def test_a_model_for_gpus_fails_its_jobs_only_where_no_node_has_one(
    settings: Settings, store: WorkerStore, make_child: MakeChild, raw_redis: redis.Redis
) -> None:
    child, gpu = make_child("own"), make_child("other", "cuda")
    ids = submit(settings, "gpu-only", "a")
    child.drain("gpu-only")
    wait_until(lambda: bells_for(raw_redis, "other"), what="the hop")
    gpu.drain("gpu-only", passed_on=True)
    assert ends(store, ids) == {("complete", None)}
    store.retire("other")
    ids = submit(settings, "gpu-only", "a")
    child.drain("gpu-only")
    (job,) = records(store, ids)
    assert job.status is Status.FAILED
    assert "runs on cuda, and this worker is on cpu" in (job.error or {})["message"]


def test_a_job_says_where_it_ran_if_that_was_not_on_its_nodes_device(
    settings: Settings, store: WorkerStore, make_child: MakeChild
) -> None:
    child = make_child("own", "cuda")
    for model, device in (("no-gpu", "cpu"), ("noop", "cuda")):
        ids = submit(settings, model, "a")
        child.drain(model)
        assert [job.details["device"] for job in records(store, ids)] == [device]


def test_a_bell_that_comes_late_loads_nothing(
    settings: Settings, store: WorkerStore, make_child: MakeChild
) -> None:
    child = make_child("own")
    child.drain("noop")
    assert child._models.states == {}
    submit(settings, "noop", "a")
    child.drain("noop")
    assert child._models.states["noop"].status == "running"


def test_a_process_with_memory_that_it_cannot_give_back_ends_and_fails_no_job(
    settings: Settings, store: WorkerStore, make_child: MakeChild, exits: list[int], raw_redis: redis.Redis
) -> None:
    child = make_child("own")
    child._models.pinned = True
    child.load("noop")
    child.unload("noop")
    assert exits == [0, 0]
    ids = submit(settings, "broken", "a")
    again = make_child("again")
    again._models.pinned = True
    again.drain("broken")
    assert exits == [0, 0, 0]
    assert ends(store, ids) == {("starting", None)}
    assert raw_redis.llen("modelmill.model.broken") == 1, "the next process is called"


def test_a_node_that_cannot_say_what_it_has_goes_on(
    settings: Settings, store: WorkerStore, make_child: MakeChild, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = make_child("own")
    for error in (RedisError("away"), ValueError("unforeseen")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(child._store, "announce", fail)
        ids = submit(settings, "noop", "a")
        child.drain("noop")
        assert ends(store, ids) == {("complete", None)}
        child.unload("noop")
