"""Which node answers a bell: the rule alone, and on real nodes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import httpx
import pytest
import redis

from modelmill.settings import MIB, Settings
from modelmill.store import NodeRecord
from modelmill_worker.models.placement import Demand, better_node, other_node
from tests.support.api import submit_jobs, wait_all
from tests.support.processes import wait_until
from tests.support.workers import Workers, live_nodes


def node(
    name: str,
    free_mib: int = 100,
    idle_s: float = 0.0,
    device: str = "cpu",
    load_s: float = 1.0,
    retry_in_s: float | None = None,
    **models: str,
) -> NodeRecord:
    states = {
        model: {"status": status, "load_s": load_s, "retry_in_s": retry_in_s}
        for model, status in models.items()
    }
    child = {"models": states, "free_mib": free_mib, "idle_s": idle_s, "device": device}
    return NodeRecord.from_documents(name, {"models": {"m": ["t"], "other": ["t"]}}, child)


def demand(backlog: int = 1, rate: float | None = 10.0, **more: Any) -> Demand:
    return Demand("m", backlog, rate, max_batch=4, memory_mib=60, **more)


def choose(*nodes: NodeRecord, **more: Any) -> str | None:
    return better_node(demand(**more), "own", nodes, spread_after_s=2.0)


def failed(name: str, retry_in_s: float) -> NodeRecord:
    return node(name, retry_in_s=retry_in_s, m="failed")


def test_a_short_backlog_stays_with_the_node_that_has_the_model() -> None:
    assert choose(node("own"), node("b", m="running"), backlog=20) == "b"
    assert choose(node("own"), node("b", m="loading"), backlog=20) == "b"


def test_a_long_backlog_makes_this_node_load_the_model_too() -> None:
    assert choose(node("own"), node("b", m="running"), backlog=21) is None
    # Two nodes run twice as many jobs.
    assert choose(node("own"), node("b", m="running"), node("c", m="running"), backlog=40) in ("b", "c")


def test_what_takes_long_to_load_is_spread_later() -> None:
    slow = node("b", load_s=60.0, m="running")
    assert choose(node("own"), slow, backlog=599) == "b"
    assert choose(node("own"), slow, backlog=601) is None


def test_while_the_speed_is_unknown_two_batches_are_short() -> None:
    assert choose(node("own"), node("b", m="running"), backlog=8, rate=None) == "b"
    assert choose(node("own"), node("b", m="running"), backlog=9, rate=None) is None


def test_a_busy_node_without_room_does_not_evict_for_a_second_copy() -> None:
    busy = node("own", free_mib=10, other="running")
    assert choose(busy, node("b", m="running"), backlog=1000) == "b"
    idle = node("own", free_mib=10, idle_s=60.0, other="running")
    assert choose(idle, node("b", m="running"), backlog=1000) is None


def test_a_model_that_no_node_has_goes_where_there_is_room() -> None:
    full = node("own", free_mib=10, other="running")
    assert choose(full, node("b")) == "b"
    assert choose(full, node("b", free_mib=10, other="running")) is None
    assert choose(node("own"), node("b")) is None


def test_a_node_that_does_not_serve_the_model_is_never_chosen() -> None:
    stranger = NodeRecord.from_documents("b", {"models": {"other": ["t"]}}, {"models": {}, "free_mib": 1000})
    assert choose(node("own", free_mib=10, other="running"), stranger) is None


@pytest.mark.parametrize("backlog", [1, 100_000])
def test_a_node_that_cannot_load_the_model_leaves_it_to_one_that_can_for_any_backlog(backlog: int) -> None:
    def choose_impossible(*others: NodeRecord) -> str | None:
        return choose(node("own"), *others, backlog=backlog, rests=True)

    full = node("full", free_mib=10, other="running")
    assert choose_impossible(node("b", m="running"), node("c"), full) == "b"
    assert choose_impossible(node("b", m="loading"), node("c"), full) == "b"
    assert choose_impossible(node("c"), full) == "c"
    assert choose_impossible(full) == "full"
    assert choose_impossible(failed("d", 0.0), full) == "full"
    # A node that may try again is the last choice. A node that rests is never chosen.
    assert choose_impossible(failed("d", 0.0), failed("e", 3.0)) == "d"
    assert choose_impossible(failed("e", 3.0)) is None
    assert choose_impossible() is None


def test_a_node_that_cannot_load_the_model_is_not_chosen() -> None:
    full = node("own", free_mib=10, other="running")
    assert choose(full, failed("b", 3.0)) is None
    assert choose(full, failed("b", 0.0)) is None
    on_gpus_only: dict[str, Any] = {"devices": ("cuda",)}
    assert choose(node("own"), node("b"), **on_gpus_only) is None
    assert choose(node("own"), node("b", m="running"), node("c", device="cuda"), **on_gpus_only) == "c"
    # A node where loading failed does not count as one that has the model.
    assert choose(node("own"), node("b", m="running"), failed("c", 3.0), backlog=21) is None


def test_a_gpu_runs_what_is_for_the_cpu_only_where_no_node_of_a_cpu_does() -> None:
    def choose_on_gpu(*others: NodeRecord, rests: bool = False) -> str | None:
        own = node("own", device="cuda")
        return choose(own, *others, devices=("cpu",), device="cuda", rests=rests)

    gpu = node("gpu", device="cuda", m="running")
    assert choose_on_gpu(node("b"), gpu) == "b"
    assert choose_on_gpu(failed("b", 0.0), gpu) is None
    assert choose_on_gpu(failed("b", 0.0), gpu, rests=True) == "gpu"
    assert choose(node("own"), gpu, devices=("cpu",)) is None
    assert choose(node("own"), gpu, devices=("cpu",), rests=True) == "gpu"


def test_a_failed_load_goes_to_nodes_where_it_has_not_failed() -> None:
    nodes = [node("own", m="failed"), failed("b", 0.0), failed("c", 3.0)]
    assert other_node(demand(rests=True), "own", nodes) == "b"
    assert other_node(demand(rests=True), "own", nodes, retry=False) is None
    assert other_node(demand(rests=True), "own", [*nodes, node("d", m="loading")], retry=False) == "d"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    # Room for one of the models at a time, which claim 60 MiB each.
    return settings.model_copy(update={"model_memory_bytes": 100 * MIB})


def loaded_by(raw_redis: redis.Redis, name: str) -> list[set[str]]:
    return [
        {model for model, state in each["child"]["models"].items() if state["status"] == "running"}
        for each in live_nodes(raw_redis, name).values()
    ]


def test_two_models_under_alternating_load_settle_on_two_nodes(
    settings: Settings,
    api: httpx.Client,
    start_workers: Callable[..., Workers],
    raw_redis: redis.Redis,
) -> None:
    workers = start_workers(devices="cpu:2")
    for _ in range(6):
        for model in ("room-a", "room-b"):
            done = wait_all(api, submit_jobs(api, model, 4))
            assert {each["status"] for each in done} == {"complete"}
    assert sorted(map(sorted, loaded_by(raw_redis, workers.name))) == [["room-a"], ["room-b"]]
    log = workers.log.read_text()
    assert log.count("loaded model room-") == 2
    assert "evicting" not in log


def test_one_model_under_heavy_load_is_served_by_both_nodes(
    settings: Settings,
    api: httpx.Client,
    start_workers: Callable[..., Workers],
    raw_redis: redis.Redis,
) -> None:
    workers = start_workers(devices="cpu:2")
    done: list[dict[str, Any]] = wait_all(api, submit_jobs(api, "room-a", 400))
    assert {each["status"] for each in done} == {"complete"}
    assert {each["node"] for each in done} == {f"{workers.name}-cpu0", f"{workers.name}-cpu1"}
    wait_until(lambda: loaded_by(raw_redis, workers.name) == [{"room-a"}] * 2, what="both copies")
