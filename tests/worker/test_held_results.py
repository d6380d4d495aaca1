"""Results that cannot be written: their jobs wait aside within limits, and all other jobs go on."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from modelmill.catalogue import Catalogue
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import (
    ApiStore,
    ClaimRequest,
    JobRecord,
    Outcome,
    Released,
    Return,
    Submission,
    WorkerStore,
    keys,
)
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import current_device
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.shared.examples import CAT
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.context import DrainContext
from modelmill_worker.drain.drain import Drain
from modelmill_worker.drain.leases import Leases
from tests.fixtures.runners import SizedRunner
from tests.support.blobs import unwritable
from tests.support.jobs import TASK, records
from tests.support.paths import TEST_MODELS
from tests.support.processes import wait_until
from tests.support.servers import Valkey
from tests.support.store import submit

LARGE = 50_000
"""Numbers in a result of about 200 KB."""


@dataclass
class Worker:
    """A worker in this process: everything but Celery."""

    settings: Settings
    store: WorkerStore
    raw: redis.Redis
    recorder: Recorder
    leases: Leases
    drain: Drain
    models: dict[str, LoadedModel] = field(default_factory=dict)

    def submit(self, model: str, *classes: list[Any]) -> list[str]:
        return submit(self.settings, *(self.job(model, each) for each in classes))

    def job(self, model: str, classes: list[Any]) -> Submission:
        """A plain job of some classes, or a batched job if each item has its own."""
        batched = isinstance(classes[0], list)
        image = [CAT] * len(classes) if batched else CAT
        named = [list(map(str, each)) for each in classes] if batched else list(map(str, classes))
        body = json.dumps({"image": image, "classes": named}).encode()
        items = len(classes) if batched else 1
        return Submission(str(uuid.uuid4()), TASK, model, body, batched=batched, items=items)

    def run(self, name: str) -> None:
        """One run over the model's queue, which must come to its end."""
        if name not in self.models:
            catalogue = Catalogue.load(TEST_MODELS)
            context = LoadContext(catalogue[name], current_device(), catalogue, self.settings)
            self.models[name] = LoadedModel(context).load()
        self.drain.run(self.models[name], threading.Event())

    def records(self, ids: list[str]) -> list[JobRecord]:
        return records(self.store, ids)

    def statuses(self, ids: list[str]) -> list[str]:
        return [record.status.value for record in self.records(ids)]

    def code(self, job_id: str) -> str | None:
        (record,) = self.records([job_id])
        return (record.error or {}).get("code")

    def wait_for(self, job_id: str) -> JobRecord:
        """Waits for the job's end. No lease and no open claim may remain of it."""
        wait_until(lambda: self.records([job_id])[0].status.is_terminal, what="the end of a held job")
        wait_until(lambda: not self.fences(), what="the end of its claim")
        assert not self.raw.exists(keys.LEASES)
        (record,) = self.records([job_id])
        assert record.ends == 1
        return record

    def fences(self) -> tuple[str, ...]:
        """The open claims that the parent would return."""
        self.recorder.note_draining("any")
        state = self.recorder.read()
        assert state is not None
        return state.fences

    def act(self, how: Callable[[ApiStore], Any]) -> Any:
        async def main() -> Any:
            store = ApiStore(self.settings)
            try:
                return await how(store)
            finally:
                await store.close()

        return asyncio.run(main())

    def has_room(self, room: bool) -> None:
        """Whether the server has memory for large values."""
        self.raw.config_set("maxmemory", 0 if room else 1)


@pytest.fixture
def start(settings: Settings, tmp_path: Path) -> Iterator[Callable[..., Worker]]:
    with ExitStack() as cleanup:

        def act(*options: str, **more: Any) -> Worker:
            server = Valkey(tmp_path, *options)
            cleanup.callback(server.stop)
            own = settings.model_copy(update={"redis_url": server.url, "linger_s": 0.0, **more})
            raw, store = redis.Redis.from_url(server.url), WorkerStore(own)
            recorder, leases = Recorder(tmp_path), Leases(store)
            recorder.start_file()
            drain = Drain(DrainContext(own, store, leases, recorder, node="node", device="cpu"))
            for close in (store.close, raw.close, drain.close):
                cleanup.callback(close)
            return Worker(own, store, raw, recorder, leases, drain)

        yield act


def test_a_run_ends_although_a_result_is_held_and_all_other_jobs_go_on(start: Callable[..., Worker]) -> None:
    worker = start()
    (large,) = worker.submit("sized", [LARGE])
    same = worker.submit("sized", *[[2]] * 5)
    other = worker.submit("echo", *[[n] for n in range(5)])
    worker.has_room(False)

    worker.run("sized")
    worker.run("echo")
    held, fences = worker.statuses([large]), worker.fences()
    later = worker.statuses(same + other)
    worker.has_room(True)

    assert (held, len(fences)) == (["running"], 1)
    assert later == ["complete"] * 10
    assert worker.wait_for(large).result == {"probabilities": [0.5] * LARGE}


def test_a_result_that_can_never_be_written_fails_its_job_only(start: Callable[..., Worker]) -> None:
    worker = start("--proto-max-bulk-len", "1mb")
    (never,) = worker.submit("sized", [300_000])
    good = worker.submit("sized", *[[2]] * 5)

    worker.run("sized")

    record = worker.wait_for(never)
    assert (record.status, worker.code(never)) == (Status.FAILED, "result_too_large")
    assert record.error == {
        "code": "result_too_large",
        "message": "The result is larger than the longest value that the job store takes. "
        "Send less in one job, or fewer items.",
        "retryable": False,
        "deliveries": 1,
    }
    assert worker.statuses(good) == ["complete"] * 5


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ({"max_hold_s": 0.2}, ["failed", "failed"]),
        ({"max_held_results": 1}, ["running", "failed"]),
        ({"max_held_results": 0}, ["failed", "failed"]),
        ({"max_held_bytes": 300_000}, ["running", "failed"]),
    ],
    ids=["time", "count", "none", "bytes"],
)
def test_beyond_the_limits_a_job_fails_and_may_run_again(
    start: Callable[..., Worker], limit: dict[str, Any], expected: list[str]
) -> None:
    worker = start(**limit)
    ids = worker.submit("sized", *[[LARGE]] * 2)
    worker.has_room(False)

    worker.run("sized")
    wait_until(lambda: sorted(worker.statuses(ids)) == sorted(expected), what="the ends")

    assert worker.statuses(ids) == expected
    worker.has_room(True)
    last = worker.wait_for(ids[1])
    assert last.error == {
        "code": "result_not_stored",
        "message": "The model answered, but the result could not be stored: "
        "the job store has no room for it. Run the job again later.",
        "retryable": True,
        "deliveries": 1,
    }
    assert last.details["batch_size"] == 2


@pytest.mark.parametrize("deleted", [False, True])
def test_a_held_job_can_be_canceled_and_deleted(start: Callable[..., Worker], deleted: bool) -> None:
    worker = start()
    (job_id,) = worker.submit("sized", [LARGE])
    worker.has_room(False)
    worker.run("sized")

    if deleted:
        worker.act(lambda store: store.delete([job_id]))
    else:
        worker.act(lambda store: store.cancel(job_id))
    worker.leases.renew()

    if deleted:
        wait_until(lambda: not worker.raw.exists(keys.JOB + job_id), what="the job's removal")
    else:
        record = worker.wait_for(job_id)
        assert (record.status, record.result, record.error) == (Status.CANCELED, None, None)


def test_a_stopping_process_gives_held_jobs_back_and_the_next_one_runs_them(
    start: Callable[..., Worker],
) -> None:
    worker = start()
    (job_id,) = worker.submit("sized", [LARGE])
    worker.has_room(False)
    worker.run("sized")

    worker.drain.release_held()

    (record,) = worker.records([job_id])
    assert (record.status, record.deliveries, worker.fences()) == (Status.STARTING, 0, ())
    worker.has_room(True)
    after = Drain(
        DrainContext(worker.settings, worker.store, worker.leases, worker.recorder, node="b", device="cpu")
    )
    after.run(worker.models["sized"], threading.Event())
    after.close()
    assert worker.wait_for(job_id).status is Status.COMPLETE


def test_a_stopping_process_tries_once_more(start: Callable[..., Worker]) -> None:
    worker = start()
    (job_id,) = worker.submit("sized", [LARGE])
    worker.has_room(False)
    worker.run("sized")
    worker.has_room(True)

    worker.drain.release_held()

    (record,) = worker.records([job_id])
    assert (record.status, record.deliveries, record.ends) == (Status.COMPLETE, 1, 1)


def test_a_held_result_whose_lease_was_lost_is_discarded(start: Callable[..., Worker]) -> None:
    worker = start()
    (job_id,) = worker.submit("sized", [LARGE])
    worker.has_room(False)
    worker.run("sized")
    # As after a silence of the heartbeat: the job went back to the queue, and another worker gets it.
    (fence,) = worker.fences()
    worker.store.settle([Released(job_id, fence, Return.SUSPECT)])
    (claimed,) = worker.store.claim(ClaimRequest("sized", "other", "node", 1, 2**20)).jobs
    worker.leases.renew()
    wait_until(lambda: not worker.fences(), what="the discard")
    worker.has_room(True)

    worker.store.settle([Outcome(job_id, claimed.fence, Status.COMPLETE, b"1")])

    record = worker.wait_for(job_id)
    assert (record.result, record.deliveries) == (1, 2)


@pytest.mark.parametrize("classes", [[LARGE], [[LARGE // 2]] * 2], ids=["plain", "batched"])
def test_while_the_blob_folder_is_full_its_results_are_held(
    start: Callable[..., Worker], tmp_path: Path, classes: list[Any]
) -> None:
    folder = tmp_path / "blobs"
    worker = start(blob_url=str(folder), blob_min_bytes=100_000)
    first, second = worker.submit("sized", classes, classes)
    beside = worker.submit("sized", *[[20_000]] * 2, [2])

    with unwritable(folder):
        worker.run("sized")
        during = worker.statuses([first, second, *beside])

    assert during == ["running"] * 2 + ["complete"] * 3
    for job_id in (first, second):
        record = worker.wait_for(job_id)
        assert (record.status, record.result_blob is not None) == (Status.COMPLETE, True)


def test_what_the_blob_folder_never_takes_goes_to_redis_and_fails_if_that_is_full_too(
    start: Callable[..., Worker], tmp_path: Path
) -> None:
    folder = tmp_path / "blobs"
    worker = start(blob_url=str(folder), blob_min_bytes=100_000, max_hold_s=0.2)
    with unwritable(folder):
        (job_id,) = worker.submit("sized", [LARGE])
        worker.run("sized")
        spilled = worker.wait_for(job_id)
        (job_id,) = worker.submit("sized", [LARGE])
        worker.has_room(False)
        worker.run("sized")
        lost = worker.wait_for(job_id)

    assert (spilled.status, spilled.result) == (Status.COMPLETE, {"probabilities": [0.5] * LARGE})
    assert spilled.result_blob is None
    assert (lost.status, (lost.error or {})["code"]) == (Status.FAILED, "result_not_stored")


def test_a_request_that_cannot_be_read_holds_no_job_beside_it_back(
    start: Callable[..., Worker], tmp_path: Path
) -> None:
    folder = tmp_path / "blobs"
    worker = start(blob_url=str(folder), blob_min_bytes=2 * len(CAT))
    few, many = worker.submit("sized", [2], [[2]] * 3)
    (folder / "in").rename(folder / "gone")

    worker.run("sized")
    during = worker.records([few, many])
    (folder / "gone").rename(folder / "in")
    worker.run("sized")

    assert [record.blob is None for record in during] == [True, False]
    assert [(record.status, record.deliveries) for record in during] == [
        (Status.COMPLETE, 1),
        (Status.STARTING, 0),
    ]
    assert worker.statuses([few, many]) == ["complete"] * 2


def test_a_batched_job_stops_as_soon_as_its_results_are_too_large(start: Callable[..., Worker]) -> None:
    # Batches of four items of 4 KB.
    worker = start(max_result_bytes=30_000)
    large, small = worker.submit("sized", [[1000]] * 40, [[1000]] * 7)

    worker.run("sized")

    assert worker.statuses([large, small]) == ["failed", "complete"]
    assert worker.code(large) == "result_too_large"
    assert cast("SizedRunner", worker.models["sized"].runner(TASK)).passes < 8
    assert not worker.raw.exists(keys.PARTS + large)


@pytest.mark.parametrize("count", [1, 3], ids=["plain", "batched"])
def test_the_limit_of_a_result_is_exact(start: Callable[..., Worker], count: int) -> None:
    worker = start()
    classes = [500] if count == 1 else [[500]] * count
    (job_id,) = worker.submit("sized", classes)
    worker.run("sized")
    size = len(worker.records([job_id])[0].result_json or b"")

    for limit, expected in ((size, "complete"), (size - 1, "failed")):
        bounded = worker.settings.model_copy(update={"max_result_bytes": limit})
        context = DrainContext(bounded, worker.store, worker.leases, worker.recorder, node="n", device="cpu")
        (job_id,) = worker.submit("sized", classes)
        drain = Drain(context)
        drain.run(worker.models["sized"], threading.Event())
        drain.close()
        assert worker.statuses([job_id]) == [expected]
