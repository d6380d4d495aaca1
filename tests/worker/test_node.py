"""Real nodes: Celery processes, signals, devices, several workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from modelmill.catalogue import Catalogue
from modelmill.settings import Settings
from modelmill.store import WorkerStore, keys
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import current_device
from modelmill_backends.loader import LoadedModel
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.context import DrainContext
from modelmill_worker.drain.drain import Drain
from modelmill_worker.drain.leases import Leases
from tests.support.api import documents, submit_at_once, submit_jobs, wait_all
from tests.support.exhaustive import exhaustive
from tests.support.jobs import are_complete, submit
from tests.support.paths import TEST_MODELS
from tests.support.processes import is_running, wait_until
from tests.support.servers import Valkey, environment_of
from tests.support.workers import Workers, live_nodes

StartWorkers = Callable[..., Workers]


def only_node(raw_redis: redis.Redis, workers: Workers) -> dict[str, Any]:
    (node,) = live_nodes(raw_redis, workers.name).values()
    return node


def test_a_job_goes_through_a_real_worker_in_a_folder_with_names_of_packages(
    api: httpx.Client, start_workers: StartWorkers, raw_redis: redis.Redis, tmp_path: Path
) -> None:
    folder = tmp_path / "users-own"
    folder.mkdir()
    for name in ("celery", "redis", "modelmill", "celeryconfig", "tasks", "api", "worker", "backends"):
        (folder / f"{name}.py").write_text("raise SystemExit('the wrong module')\n")

    start_workers(cwd=folder)
    (done,) = wait_all(api, submit_jobs(api, "noop"))
    assert done["result"] == {"probabilities": [0.5, 0.5]}
    assert (done["device"], done["node"], done["batch_size"]) == ("cpu", "w1-cpu0", 1)
    assert api.get("/api/models/noop/status").json()["status"] == "running"
    assert raw_redis.zcard(keys.LEASES) == raw_redis.zcard(keys.READY + "noop") == 0


def test_each_node_and_its_child_see_one_device_before_any_import(
    start_workers: StartWorkers, raw_redis: redis.Redis
) -> None:
    # These GPUs do not exist. The test runs no job; it only looks at the environment.
    workers = start_workers(devices="0,1")
    seen = {
        name: (
            node["parent"]["cuda_visible_devices"],
            node["child"]["cuda_visible_devices"],
            node["child"]["device"],
        )
        for name, node in live_nodes(raw_redis, workers.name).items()
    }
    assert seen == {"w1-cuda0": ("0", "0", "cuda"), "w1-cuda1": ("1", "1", "cuda")}
    for node in live_nodes(raw_redis, workers.name).values():
        parent, child = node["parent"]["pid"], node["child"]["pid"]
        for pid, pin in ((parent, node["parent"]), (child, node["child"])):
            environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            assert f"CUDA_VISIBLE_DEVICES={pin['cuda_visible_devices']}".encode() in environment
        # The parent imports no runtime: their libraries are not mapped into it.
        assert not any(
            word in Path(f"/proc/{parent}/maps").read_text() for word in ("libtorch", "onnxruntime")
        )


def test_a_second_worker_takes_its_share_and_stopping_one_loses_nothing(
    api: httpx.Client, start_workers: StartWorkers
) -> None:
    first, second = start_workers(), start_workers()
    ids = submit_jobs(api, "slow", 40)
    wait_until(
        lambda: {each.get("node") for each in documents(api, ids)} >= {"w1-cpu0", "w2-cpu0"},
        what="jobs done by both workers",
    )
    assert second.stop() == 0
    assert {each["status"] for each in wait_all(api, ids)} == {"complete"}
    # The stopped worker released its jobs, so no second delivery counts.
    assert {each["deliveries"] for each in documents(api, ids)} == {1}
    assert first.process.poll() is None


@pytest.mark.parametrize("target", [exhaustive("parent"), "group"])
def test_sigterm_finishes_the_running_batch_and_releases_the_rest(
    api: httpx.Client, start_workers: StartWorkers, raw_redis: redis.Redis, target: str
) -> None:
    workers = start_workers()
    pid = only_node(raw_redis, workers)["parent"]["pid"]
    os.kill(workers.process.pid, signal.SIGSTOP)  # it would start the node again
    ids = submit_jobs(api, "slow", 12)
    wait_until(
        lambda: any(each["status"] == "complete" for each in documents(api, ids)), what="a first batch"
    )
    started = time.monotonic()
    if target == "parent":
        os.kill(pid, signal.SIGTERM)
    else:
        os.killpg(os.getpgid(pid), signal.SIGTERM)
    wait_until(lambda: not is_running(pid), what="the node's end")
    assert time.monotonic() - started < 10
    statuses = [each["status"] for each in documents(api, ids)]
    assert set(statuses) == {"complete", "starting"}
    assert raw_redis.zcard(keys.LEASES) == 0
    os.kill(workers.process.pid, signal.SIGCONT)
    done = wait_all(api, ids)
    assert {(each["status"], each["deliveries"]) for each in done} == {("complete", 1)}


def test_a_hangup_stops_no_node_and_the_supervisor_starts_each_again(
    api: httpx.Client, start_workers: StartWorkers, raw_redis: redis.Redis
) -> None:
    workers = start_workers()
    before = only_node(raw_redis, workers)
    for part in ("child", "parent"):
        os.kill(before[part]["pid"], signal.SIGHUP)
    done = wait_all(api, submit_jobs(api, "slow", 4))
    assert {each["status"] for each in done} == {"complete"}
    same = only_node(raw_redis, workers)
    assert [same[part]["pid"] for part in ("child", "parent")] == [
        before[part]["pid"] for part in ("child", "parent")
    ]

    ids = submit_jobs(api, "slow", 12)
    os.kill(workers.process.pid, signal.SIGHUP)
    wait_until(lambda: not is_running(before["parent"]["pid"]), what="the end of the first node")

    assert {(each["status"], each["deliveries"]) for each in wait_all(api, ids)} == {("complete", 1)}
    assert workers.stop() == 0


def test_a_killed_child_is_replaced_and_its_jobs_run_again(
    api: httpx.Client, start_workers: StartWorkers, raw_redis: redis.Redis
) -> None:
    workers = start_workers()
    ids = submit_jobs(api, "slow", 12)
    # One batch is done, so the next is in `forward`, and a third may have been claimed ahead.
    wait_until(lambda: documents(api, ids[:1])[0]["status"] == "complete", what="the first batch")
    child = only_node(raw_redis, workers)["child"]["pid"]
    ended = {each["id"] for each in documents(api, ids) if each["status"] == "complete"}

    os.kill(child, signal.SIGKILL)

    done = wait_all(api, ids)
    assert {each["status"] for each in done} == {"complete"}
    # A second delivery counts only for those in `forward`, a batch of at most four. They ran again alone.
    again = {each["id"] for each in done if each["deliveries"] == 2}
    assert {each["deliveries"] for each in done} == {1, 2}
    assert not again & ended
    assert 1 <= len(again) <= 4
    assert only_node(raw_redis, workers)["child"]["pid"] != child


def test_a_killed_node_is_started_again_and_its_jobs_run_again(
    api: httpx.Client, start_workers: StartWorkers, raw_redis: redis.Redis
) -> None:
    workers = start_workers()
    ids = submit_jobs(api, "slow", 12)
    wait_until(lambda: raw_redis.zcard(keys.LEASES), what="a claim")
    node = only_node(raw_redis, workers)
    os.kill(node["parent"]["pid"], signal.SIGKILL)
    # No process of it is left that uses a GPU.
    wait_until(lambda: not is_running(node["child"]["pid"]), what="the end of the child")
    assert {each["status"] for each in wait_all(api, ids)} == {"complete"}
    assert only_node(raw_redis, workers)["parent"]["pid"] != node["parent"]["pid"]
    assert "starting it again in 0.5 s" in workers.log.read_text()


def test_a_killed_supervisor_takes_its_nodes_along(
    start_workers: StartWorkers, raw_redis: redis.Redis
) -> None:
    workers = start_workers()
    node = only_node(raw_redis, workers)
    workers.process.kill()
    for part in ("parent", "child"):
        wait_until(lambda pid=node[part]["pid"]: not is_running(pid), what=f"the end of the {part}")  # type: ignore[misc]


def test_a_model_that_fails_to_load_fails_its_jobs_and_others_go_on(
    api: httpx.Client, start_workers: StartWorkers
) -> None:
    start_workers()
    broken, fine = submit_jobs(api, "broken", 3), submit_jobs(api, "noop", 3)
    assert {each["status"] for each in wait_all(api, fine)} == {"complete"}
    for each in wait_all(api, broken):
        assert each["error"]["code"] == "model_load_failed"
        assert "no such file" in each["error"]["message"]
    status = api.get("/api/models/broken/status").json()
    assert status["status"] == "failed"
    assert "no such file" in status["error"]


def test_jobs_run_on_the_node_that_can_load_their_model(
    api: httpx.Client, start_workers: StartWorkers
) -> None:
    # This GPU does not exist. These models load on its node only, and do not use it.
    workers = start_workers(devices="cpu,0")
    # So many jobs that both nodes would run some if both could.
    ids = {model: submit_at_once(api, model, 150) for model in ("gpu-only", "gpu-weights")}
    ids["broken"] = submit_jobs(api, "broken", 3)
    for model in ("gpu-only", "gpu-weights"):
        done = wait_all(api, ids[model])
        assert {(each["status"], each["node"]) for each in done} == {("complete", f"{workers.name}-cuda0")}
    # A model that no node can load does not keep its callers waiting.
    for each in wait_all(api, ids["broken"]):
        assert each["error"]["code"] == "model_load_failed"
        assert "no such file" in each["error"]["message"]
    said = api.get("/api/models/broken/status").json()["workers"]
    assert {each["status"] for each in said.values()} == {"failed"}


def test_models_load_when_told_and_unload_when_told(api: httpx.Client, start_workers: StartWorkers) -> None:
    start_workers("--preload", "noop")

    def status(model: str) -> str:
        return str(api.get(f"/api/models/{model}/status").json()["status"])

    wait_until(lambda: status("noop") == "running", what="the preloaded model")
    assert status("slow") == "uninitialized"
    assert api.post("/api/models/slow/start").json()["status"] in ("starting", "loading", "running")
    wait_until(lambda: status("slow") == "running", what="the start")
    api.post("/api/models/noop/stop")
    wait_until(lambda: status("noop") == "stopped", what="the stop")
    assert [each["status"] for each in wait_all(api, submit_jobs(api, "noop"))] == ["complete"]


def test_orders_reach_every_node_and_a_batch_that_runs_is_finished_first(
    api: httpx.Client, start_workers: StartWorkers
) -> None:
    workers = start_workers(devices="cpu:2")

    def states() -> dict[str, str]:
        said = api.get("/api/models/slow/status").json()["workers"]
        return {name: each["status"] for name, each in said.items()}

    running, stopped = (
        {f"{workers.name}-cpu{index}": status for index in range(2)} for status in ("running", "stopped")
    )
    assert api.post("/api/models/slow/start").status_code == 202
    wait_until(lambda: states() == running, what="both copies")
    ids = submit_jobs(api, "slow", 4)
    wait_until(lambda: documents(api, ids[:1])[0]["status"] == "running", what="a batch that runs")
    assert api.post("/api/models/slow/stop").status_code == 202
    wait_until(lambda: states() == stopped, what="both stops")
    done = wait_all(api, ids)
    assert {(each["status"], each["deliveries"]) for each in done} == {("complete", 1)}
    assert states() == stopped, "a bell that came late loaded it again"


def test_a_lost_device_costs_a_process_and_no_job_and_batch_sizes_are_learned_for_the_next(
    settings: Settings,
    store: WorkerStore,
    api: httpx.Client,
    start_workers: StartWorkers,
    raw_redis: redis.Redis,
    tmp_path: Path,
) -> None:
    workers = start_workers(MODELMILL_TEST_MARKER=str(tmp_path / "lost"))
    child = only_node(raw_redis, workers)["child"]["pid"]
    (lost,) = wait_all(api, submit_jobs(api, "losing"))
    assert (lost["status"], lost["deliveries"]) == ("complete", 2)
    assert only_node(raw_redis, workers)["child"]["pid"] != child
    log = workers.log.read_text()
    assert "the device is lost, ending this process" in log
    assert "exitcode 70" in log

    wait_all(api, submit_jobs(api, "small-batches", 24))

    def learned() -> bool:
        (said,) = api.get("/api/models/small-batches/status").json()["workers"].values()
        return bool(said.get("batch_size") == 1 and said["items_per_s"]["1"] > said["items_per_s"]["2"])

    wait_until(learned, what="the best batch size")
    # The drain stores it at its end, and the next worker starts with it.
    wait_until(lambda: store.recall_sizing("small-batches", "cpu") == {"best": 1}, what="the memory of it")
    catalogue = Catalogue.load(TEST_MODELS)
    following = Drain(
        DrainContext(settings, store, Leases(store), Recorder(tmp_path), node="next", device="cpu")
    )
    context = LoadContext(catalogue["small-batches"], current_device(), catalogue, settings)
    assert following.measurements.sizer(LoadedModel(context)).size == 1
    following.close()


def test_a_worker_serves_only_the_models_it_is_given(
    api: httpx.Client, start_workers: StartWorkers, raw_redis: redis.Redis
) -> None:
    workers = start_workers("--models", "noop")
    assert list(only_node(raw_redis, workers)["parent"]["models"]) == ["noop"]
    waiting, done = submit_jobs(api, "slow"), submit_jobs(api, "noop")
    assert [each["status"] for each in wait_all(api, done)] == ["complete"]
    assert [each["status"] for each in documents(api, waiting)] == ["starting"]
    start_workers("--tasks", "zero-shot-image-classification", MODELMILL_WORKER_MODELS="slow")
    assert [each["status"] for each in wait_all(api, waiting)] == ["complete"]


def test_a_lost_bell_is_rung_again(
    api: httpx.Client, start_workers: StartWorkers, raw_redis: redis.Redis
) -> None:
    ids = submit_jobs(api, "noop", 3)
    wait_until(lambda: raw_redis.llen("modelmill.model.noop"), what="the bell")
    raw_redis.delete("modelmill.model.noop")
    start_workers()
    assert {each["status"] for each in wait_all(api, ids)} == {"complete"}


def test_bells_that_no_node_answers_do_not_pile_up(api: httpx.Client, raw_redis: redis.Redis) -> None:
    submit_jobs(api, "noop", 500)
    wait_until(lambda: raw_redis.llen("modelmill.model.noop") >= 30, what="bells")
    assert raw_redis.llen("modelmill.model.noop") <= 32


def test_jobs_end_although_the_broker_takes_no_messages(
    settings: Settings, store: WorkerStore, start_workers: StartWorkers, own_valkey: Valkey
) -> None:
    broker = redis.Redis.from_url(own_valkey.url)
    workers = start_workers(MODELMILL_BROKER_URL=own_valkey.url)
    broker.config_set("maxmemory", 1)

    # Two models, and no bell.
    ids = [*submit(settings, "noop", *["a"] * 20), *submit(settings, "picky", *["a"] * 20)]
    wait_until(lambda: are_complete(store, ids), what="the ends")

    assert workers.process.poll() is None
    assert "starting it again" not in workers.log.read_text(), "the node lives"
    broker.config_set("maxmemory", 0)
    broker.close()


def test_the_plain_celery_command_runs_a_node_too(
    api: httpx.Client, settings: Settings, tmp_path: Path, raw_redis: redis.Redis
) -> None:
    command = [sys.executable, "-m", "celery", "-A", "modelmill_worker.app", "worker", "--loglevel", "INFO"]
    with (tmp_path / "celery.log").open("wb") as log:
        environment = os.environ | environment_of(settings)
        process = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=log, stderr=log)
    try:
        assert [each["status"] for each in wait_all(api, submit_jobs(api, "noop"))] == ["complete"]
    finally:
        process.terminate()
        assert process.wait(timeout=30) == 0
    assert raw_redis.smembers(keys.NODES) == set()


def test_a_wrong_configuration_ends_the_worker_with_a_sentence(settings: Settings, tmp_path: Path) -> None:
    wrong = tmp_path / "models.toml"
    wrong.write_text('[models.mine]\nbackend = "onnx"\n')
    command = [sys.executable, "-P", "-m", "modelmill_cli", "worker", "--models-file", str(wrong)]
    done = subprocess.run(
        command, env=os.environ | environment_of(settings), capture_output=True, text=True, timeout=60
    )
    assert done.returncode != 0
    assert f"{wrong}, line 1" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_health_check_knows_the_nodes_of_this_host(
    settings: Settings, start_workers: StartWorkers
) -> None:
    command = [sys.executable, "-P", "-m", "modelmill_worker.health"]
    environment = os.environ | environment_of(settings)
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == 1
    start_workers()
    assert subprocess.run(command, env=environment, capture_output=True, timeout=60).returncode == 0
