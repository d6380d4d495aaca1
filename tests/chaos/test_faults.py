"""One thing goes wrong at a time, on real servers and real workers."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import httpx
import pytest

from modelmill.broker import DRAIN, MAX_WAITING_BELLS, Bells, make_celery, model_queue
from modelmill.states import Status
from modelmill.store import ApiStore, Outcome, Settlement, Submission, WorkerStore, keys
from tests.chaos.harness import DOT, TASK, Api, System, Worker, body, probabilities
from tests.support.exhaustive import exhaustive
from tests.support.processes import wait_until
from tests.support.servers import environment_of

PATH = f"/api/tasks/{TASK}"
SLOW = {"image": DOT, "classes": ["a", "b"]}
"""For the model ``slow``: four to a batch, half a second each."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    with System(tmp_path_factory.mktemp("faults"), workers=("cpu", "cpu")) as running:
        yield running


@pytest.fixture
def store(system: System) -> Iterator[WorkerStore]:
    job_store = WorkerStore(system.settings)
    yield job_store
    job_store.close()


def field_of(system: System, job_id: str, name: str) -> str:
    return (cast("bytes | None", system.redis.hget(keys.JOB + job_id, name)) or b"").decode()


def start_a_slow_batch(system: System) -> list[str]:
    """Four jobs that are in ``forward`` together.

    On a busy machine a worker may claim fewer than four at once. These jobs are waited for, and four others
    are submitted.
    """

    def all_are_leased_or_ended() -> bool:
        return system.leased() == 4 or not system.unended(ids)

    for _ in range(5):
        ids = system.submit_at_once("slow", *[SLOW] * 4)
        wait_until(all_are_leased_or_ended, what="a claim, or the end")
        if system.leased() == 4:
            return ids
    raise AssertionError("no claim took all four jobs")


def holder_of(system: System, job_id: str) -> Worker:
    name = field_of(system, job_id, "node")
    return next(worker for worker in system.workers if name in system.nodes_of(worker))


def is_refused(worker: Worker, job_id: str) -> bool:
    """Whether a worker ran a job and its result came too late."""
    lines = [line for line in worker.log.read_text().splitlines() if job_id in line]
    return any("settled=refused" in line or "its lease was lost" in line for line in lines)


def test_a_node_that_was_stopped_beyond_its_lease_settles_nothing(system: System, store: WorkerStore) -> None:
    ids = start_a_slow_batch(system)
    fences = {job_id: field_of(system, job_id, "fence") for job_id in ids}
    stopped = holder_of(system, ids[0])
    (node,) = stopped.parents()
    os.killpg(node, signal.SIGSTOP)
    try:
        done = system.wait_all(ids)
    finally:
        os.killpg(node, signal.SIGCONT)
    assert {each["status"] for each in done} == {"complete"}
    assert {each["node"] for each in done}.isdisjoint(system.nodes_of(stopped))
    # The worker goes on. For each job it learns that it no longer has the lease.
    wait_until(lambda: all(is_refused(stopped, job_id) for job_id in ids), what="the late results")
    late = [Outcome(job_id, fence, Status.FAILED, error={"code": "x"}) for job_id, fence in fences.items()]
    assert store.settle(late) == [Settlement.REFUSED] * 4
    assert system.documents(ids) == done
    assert system.broken_promises(ids) == []


def test_each_bell_ten_times_runs_each_job_once(system: System) -> None:
    app = make_celery(system.settings)
    ids: list[str] = []
    for number in range(40):
        ids += system.submit("echo", body(number / 100))
        if number % 10 == 0:
            for _ in range(10):
                app.send_task(DRAIN, args=["echo"], queue=model_queue("echo"), ignore_result=True)
    app.close()
    done = system.wait_all(ids)
    assert [probabilities(each) for each in done] == [[number / 100] for number in range(40)]
    assert {each["deliveries"] for each in done} == {1}


def test_when_no_bell_is_ever_sent_the_reaper_of_the_workers_rings(system: System, tmp_path: Path) -> None:
    deaf = environment_of(system.settings) | {"MODELMILL_BROKER_URL": "redis://127.0.0.1:1/0"}
    api = Api(deaf, tmp_path / "api.log")
    try:
        wait_until(api.is_ready, what="the API")
        answers = [
            httpx.post(f"{api.url}{PATH}/echo/jobs", json=body(number / 100), timeout=30)
            for number in range(20)
        ]
    finally:
        api.stop()
    assert {answer.status_code for answer in answers} == {202}
    done = system.wait_all([answer.json()["id"] for answer in answers])
    assert [probabilities(each) for each in done] == [[number / 100] for number in range(20)]


def test_jobs_of_an_api_that_died_before_it_rang_are_run(system: System) -> None:
    jobs = [
        Submission(str(uuid.uuid4()), TASK, "echo", f'{{"image":"{DOT}","classes":["0.5"]}}'.encode())
        for _ in range(5)
    ]

    async def submit() -> None:
        store = ApiStore(system.settings)
        for job in jobs:
            await store.submit(job)
        await store.close()

    asyncio.run(submit())
    # As if five seconds had passed, in which the API could have rung.
    system.redis.delete(keys.BELL_SENT + "echo")
    done = system.wait_all([job.id for job in jobs])
    assert [probabilities(each) for each in done] == [[0.5]] * 5


def test_an_outage_longer_than_a_lease_counts_against_no_job(system: System) -> None:
    held = start_a_slow_batch(system)
    waiting = system.submit("slow", *[SLOW] * 4)
    system.server.stop()
    time.sleep(system.settings.lease_s * 1.5)  # the outage itself
    system.server.start()
    done = system.wait_all(held)
    assert {(each["status"], each["deliveries"]) for each in done} == {("complete", 1)}
    assert {each["status"] for each in system.wait_all(waiting)} == {"complete"}


@pytest.mark.parametrize(
    "share", [pytest.param(1.05, id="above 80 % of maxmemory"), pytest.param(0.5, id="at maxmemory")]
)
def test_a_full_job_store_accepts_nothing_and_running_jobs_still_end(system: System, share: float) -> None:
    ids = start_a_slow_batch(system)
    used = system.redis.info("memory")["used_memory"]
    system.redis.config_set("maxmemory", int(used * share))
    try:
        # The scripts read the server's memory use only a few times a second.
        wait_until(lambda: not system.redis.exists(keys.MEMORY), what="the next look at the memory")
        answers = [system.client.post(f"{PATH}/echo/jobs", json=body(0.5)) for _ in range(10)]
        assert {each["status"] for each in system.wait_all(ids)} == {"complete"}
    finally:
        system.redis.config_set("maxmemory", 0)
    assert {(each.status_code, each.json()["code"]) for each in answers} == {(503, "store_full")}
    assert all(each.headers["Retry-After"] for each in answers)
    wait_until(lambda: not system.redis.exists(keys.MEMORY), what="the next look at the memory")
    assert {each["status"] for each in system.wait_all(system.submit("echo", body(0.5)))} == {"complete"}


@pytest.mark.parametrize("minutes", [10, exhaustive(60)])
def test_the_bells_of_a_queue_that_no_node_serves_stay_few(tmp_path: Path, minutes: int) -> None:
    with System(tmp_path, workers=()) as system:
        store, bells = WorkerStore(system.settings), Bells(make_celery(system.settings), lambda _: None)
        system.submit("echo", *[body(0.5)] * 20)
        rung = 0
        # A reaper may ring once in five seconds.
        due = minutes * 60 // 5
        for _ in range(due):
            system.redis.delete(keys.BELL_SENT + "echo")
            models = store.reap().bells
            # The API's own reaper may have been quicker.
            rung += len(models)
            for model in models:
                bells.ring(model)
        bells.close()
        store.close()
        assert rung > 0.8 * due > MAX_WAITING_BELLS
        assert 1 <= system.bells_waiting("echo") <= MAX_WAITING_BELLS
        assert system.redis.zcard(keys.READY + "echo") == 20
