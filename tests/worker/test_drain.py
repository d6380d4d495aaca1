"""A drain on a real job store, in this process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from modelmill.catalogue import Catalogue
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ApiStore, ClaimRequest, Released, Return, WorkerStore, keys
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import current_device
from modelmill_backends.loader import LoadedModel
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.batches import PassObserver, preprocess, run_batch
from modelmill_worker.drain.context import DrainContext
from modelmill_worker.drain.drain import Drain
from modelmill_worker.drain.jobs import Item
from modelmill_worker.drain.leases import Leases
from modelmill_worker.drain.preparation import PORTION_BATCHES
from tests.fixtures.runners import SlowRunner
from tests.support.jobs import are_complete, records, submit, submit_batched
from tests.support.paths import TEST_MODELS
from tests.support.processes import wait_until
from tests.support.servers import Valkey

TASK = "zero-shot-image-classification"


@pytest.fixture
def leases(store: WorkerStore) -> Leases:
    return Leases(store)


@pytest.fixture
def recorder(tmp_path: Path) -> Recorder:
    return Recorder(tmp_path)


def make_drain(settings: Settings, store: WorkerStore, leases: Leases, recorder: Recorder) -> Drain:
    return Drain(DrainContext(settings, store, leases, recorder, node="node", device="cpu"))


@pytest.fixture
def drain(settings: Settings, store: WorkerStore, leases: Leases, recorder: Recorder) -> Iterator[Drain]:
    brief = settings.model_copy(update={"linger_s": 0.05})
    made = make_drain(brief, store, leases, recorder)
    yield made
    made.close()


def model(name: str, settings: Settings) -> LoadedModel:
    catalogue = Catalogue.load(TEST_MODELS)
    return LoadedModel(LoadContext(catalogue[name], current_device(), catalogue, settings)).load()


def test_a_drain_runs_the_queue_empty_in_full_batches(
    settings: Settings, store: WorkerStore, drain: Drain
) -> None:
    ids = submit(settings, "noop", *["a"] * 20)
    assert drain.run(model("noop", settings), threading.Event()) is False
    done = records(store, ids)
    assert {record.status for record in done} == {Status.COMPLETE}
    assert {record.ends for record in done} == {1}
    assert [record.details["batch_size"] for record in done] == [8] * 16 + [4] * 4
    assert done[0].result == {"probabilities": [0.5, 0.5]}


def test_a_drain_that_lingers_takes_what_comes(
    settings: Settings, store: WorkerStore, leases: Leases, recorder: Recorder, raw_redis: redis.Redis
) -> None:
    patient = make_drain(settings.model_copy(update={"linger_s": 60.0}), store, leases, recorder)
    loaded = model("noop", settings)
    worker = threading.Thread(target=patient.run, args=(loaded, threading.Event()))
    worker.start()
    for _ in range(3):
        wait_until(lambda: bool(raw_redis.scard(keys.IDLE + "noop")), what="lingering")
        ids = submit(settings, "noop", "a", "b")
        wait_until(partial(are_complete, store, ids))
    wait_until(lambda: bool(raw_redis.scard(keys.IDLE + "noop")), what="lingering")
    store.send_away("node")
    worker.join(timeout=10)
    assert not worker.is_alive()
    assert not raw_redis.exists(keys.IDLE + "noop", keys.LINGERING)
    patient.close()


def test_while_a_long_portion_runs_the_next_jobs_are_left_to_other_nodes(
    settings: Settings, store: WorkerStore, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelmill_worker.drain.drain.AHEAD_UP_TO_S", 0.2)
    # Batches of four that take half a second. How long they take is unknown before the first.
    ids = submit(settings, "slow", *["a"] * 16)
    running = threading.Thread(target=drain.run, args=(model("slow", settings), threading.Event()))
    running.start()

    wait_until(lambda: are_complete(store, ids[:8]), what="the first two portions")
    left = store.depth("slow")
    running.join()

    assert left == 4, "one portion runs, and the last one waits in the queue"
    assert are_complete(store, ids)


def test_told_to_stop_it_does_not_linger(
    settings: Settings, store: WorkerStore, leases: Leases, recorder: Recorder, raw_redis: redis.Redis
) -> None:
    patient = make_drain(settings.model_copy(update={"linger_s": 60.0}), store, leases, recorder)
    stopping = threading.Event()
    worker = threading.Thread(target=patient.run, args=(model("noop", settings), stopping))
    worker.start()
    wait_until(lambda: bool(raw_redis.scard(keys.IDLE + "noop")), what="lingering")
    stopping.set()
    worker.join(timeout=10)
    assert not worker.is_alive()
    patient.close()


def test_one_bad_job_among_many_fails_alone(settings: Settings, store: WorkerStore, drain: Drain) -> None:
    ids = submit(settings, "picky", "a", "bad", "a", "poison", "late", "a")
    drain.run(model("picky", settings), threading.Event())
    assert [record.status.value for record in records(store, ids)] == [
        "complete", "failed", "complete", "failed", "failed", "complete",
    ]  # fmt: skip


def test_a_slice_ends_and_says_that_jobs_remain(
    settings: Settings, store: WorkerStore, leases: Leases, recorder: Recorder
) -> None:
    brief = make_drain(settings.model_copy(update={"slice_s": 0.01}), store, leases, recorder)
    ids = submit(settings, "slow", *["a"] * 12)
    assert brief.run(model("slow", settings), threading.Event()) is True
    statuses = [record.status for record in records(store, ids)]
    assert Status.COMPLETE in statuses
    assert Status.STARTING in statuses
    assert Status.RUNNING not in statuses
    brief.close()


def test_told_to_stop_it_finishes_the_running_batch_and_releases_the_rest(
    settings: Settings, store: WorkerStore, drain: Drain, raw_redis: redis.Redis
) -> None:
    ids = submit(settings, "slow", *["a"] * 12)
    stopping = threading.Event()
    loaded = model("slow", settings)
    worker = threading.Thread(target=drain.run, args=(loaded, stopping))
    worker.start()
    # Stop while the first batch is in forward and the next is claimed.
    wait_until(lambda: raw_redis.zcard(keys.LEASES) == 8, what="two claims")
    stopping.set()
    worker.join(timeout=10)
    done = records(store, ids)
    assert [record.status for record in done] == [Status.COMPLETE] * 4 + [Status.STARTING] * 8
    assert {record.deliveries for record in done[4:]} == {0}
    assert raw_redis.zcard(keys.LEASES) == 0


def test_a_model_that_cannot_be_loaded_fails_its_jobs_with_the_reason(
    settings: Settings, store: WorkerStore, drain: Drain
) -> None:
    ids = submit(settings, "broken", "a", "b")
    with pytest.raises(ModelmillError) as reason:
        model("broken", settings)
    drain.fail_waiting("broken", reason.value, threading.Event())
    for record in records(store, ids):
        assert record.status is Status.FAILED
        assert record.error is not None
        assert record.error["code"] == ErrorCode.MODEL_LOAD_FAILED
        assert "no such file" in record.error["message"]


def test_a_running_job_that_is_canceled_ends_between_batches(
    settings: Settings, store: WorkerStore, leases: Leases, drain: Drain, raw_redis: redis.Redis
) -> None:
    ids = submit(settings, "slow", *["a"] * 8)
    worker = threading.Thread(target=drain.run, args=(model("slow", settings), threading.Event()))
    worker.start()
    wait_until(lambda: raw_redis.zcard(keys.LEASES) == 8, what="two claims")

    async def cancel() -> str:
        async_store = ApiStore(settings)
        try:
            return await async_store.cancel(ids[-1])
        finally:
            await async_store.close()

    assert asyncio.run(cancel()) == "requested"
    leases.renew()
    worker.join(timeout=10)
    done = records(store, ids)
    assert [record.status for record in done] == [Status.COMPLETE] * 7 + [Status.CANCELED]


def test_results_are_kept_while_the_store_does_not_answer(
    settings: Settings, store: WorkerStore, drain: Drain, raw_redis: redis.Redis
) -> None:
    ids = submit(settings, "slow", "a")
    worker = threading.Thread(target=drain.run, args=(model("slow", settings), threading.Event()))
    worker.start()
    wait_until(lambda: raw_redis.zcard(keys.LEASES) == 1, what="the claim")
    # The pause of all clients is longer than the forward pass and shorter than the lease.
    raw_redis.client_pause(1000, all=True)
    worker.join(timeout=20)
    assert [record.status for record in records(store, ids)] == [Status.COMPLETE]


def test_a_batched_job_larger_than_a_batch_runs_in_parts_and_a_retry_resumes(
    settings: Settings, store: WorkerStore, drain: Drain, raw_redis: redis.Redis
) -> None:
    job_id = submit_batched(settings, "slow", 12)
    stopping = threading.Event()
    loaded = model("slow", settings)
    worker = threading.Thread(target=drain.run, args=(loaded, stopping))
    worker.start()
    wait_until(lambda: raw_redis.hlen(keys.PARTS + job_id) == 4, what="the first part")
    stopping.set()
    worker.join(timeout=10)
    done = raw_redis.hlen(keys.PARTS + job_id)
    assert done in (4, 8)
    drain.run(loaded, threading.Event())
    # Three batches of four in all: none ran twice.
    assert cast("SlowRunner", loaded.runner(TASK)).passes == 3
    (record,) = records(store, [job_id])
    assert (record.status, record.result) == (Status.COMPLETE, [{"probabilities": [0.5, 0.5]}] * 12)


def test_a_job_longer_than_a_drain_may_take_goes_on_in_the_next(
    settings: Settings, store: WorkerStore, leases: Leases, recorder: Recorder
) -> None:
    brief = make_drain(settings.model_copy(update={"slice_s": 0.01}), store, leases, recorder)
    job_id = submit_batched(settings, "slow", 12)
    loaded = model("slow", settings)
    drains = 1
    while brief.run(loaded, threading.Event()):
        drains += 1
        (record,) = records(store, [job_id])
        assert (record.status, record.deliveries) == (Status.STARTING, 0), (
            "released, which does not count as a delivery"
        )
    assert drains > 1
    assert cast("SlowRunner", loaded.runner(TASK)).passes == 3, "no item ran twice"
    (record,) = records(store, [job_id])
    assert (record.status, record.result) == (Status.COMPLETE, [{"probabilities": [0.5, 0.5]}] * 12)
    brief.close()


def test_a_large_result_is_kept_while_the_store_has_no_room_and_small_ones_go_on(
    settings: Settings, own_valkey: Valkey, recorder: Recorder
) -> None:
    settings = settings.model_copy(update={"redis_url": own_valkey.url, "linger_s": 0.05})
    store, raw = WorkerStore(settings), redis.Redis.from_url(own_valkey.url)
    drain = make_drain(settings, store, Leases(store), recorder)
    large = submit_batched(settings, "noop", 100, classes=300)
    small = submit(settings, "noop", "a", "b")
    raw.config_set("maxmemory", 1)
    worker = threading.Thread(target=drain.run, args=(model("noop", settings), threading.Event()))
    worker.start()
    wait_until(lambda: are_complete(store, small), what="the small results")
    assert [record.status for record in records(store, [large])] == [Status.RUNNING]
    worker.join(timeout=20)
    assert not worker.is_alive(), "the run does not wait for the large result"
    raw.config_set("maxmemory", 0)
    wait_until(lambda: are_complete(store, [large]), what="the large result")
    drain.close()
    store.close()
    raw.close()


def test_of_a_job_of_many_items_a_few_batches_are_prepared_at_a_time(
    settings: Settings, store: WorkerStore, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = []

    def look(runner: Any, batch: Sequence[Item], observer: PassObserver) -> bool:
        prepared.append(sum(item.prepared is not None for item in batch[0].job.items))
        return run_batch(runner, batch, observer)

    monkeypatch.setattr("modelmill_worker.drain.drain.run_batch", look)
    job_id = submit_batched(settings, "noop", 1000)
    drain.run(model("noop", settings), threading.Event())
    assert len(prepared) == 125
    # Batches of eight: one portion runs while the next is prepared.
    assert max(prepared) <= 8 * PORTION_BATCHES * 2
    (record,) = records(store, [job_id])
    assert (record.status, len(cast("list[Any]", record.result))) == (Status.COMPLETE, 1000)


def test_beside_a_suspect_nothing_is_claimed_or_prepared(
    settings: Settings,
    store: WorkerStore,
    drain: Drain,
    raw_redis: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ids = submit(settings, "slow", *["a"] * 3)
    for job in store.claim(ClaimRequest("slow", "before", "node", 2, 2**20)).jobs:
        store.settle([Released(job.id, job.fence, Return.SUSPECT)])
    leased = []

    def look(runner: Any, batch: Sequence[Item], observer: PassObserver) -> bool:
        ended = run_batch(runner, batch, observer)
        leased.append(raw_redis.zcard(keys.LEASES))
        return ended

    monkeypatch.setattr("modelmill_worker.drain.drain.run_batch", look)
    drain.run(model("slow", settings), threading.Event())
    assert are_complete(store, ids)
    assert leased == [1, 1, 1]


def test_the_items_being_prepared_stand_in_the_child_state(
    settings: Settings, store: WorkerStore, drain: Drain, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder.start_file()
    seen: list[set[str]] = []

    def look(runner: Any, item: Item) -> None:
        state = recorder.read()
        assert state is not None
        seen.append({job_id for job_id, _, _ in state.preparing})
        preprocess(runner, item)

    monkeypatch.setattr("modelmill_worker.drain.preparation.preprocess", look)
    ids = submit(settings, "noop", *["a"] * 4)
    drain.run(model("noop", settings), threading.Event())
    assert are_complete(store, ids)
    assert seen == [set(ids)] * 4
    state = recorder.read()
    assert state is not None
    assert state.preparing == ()


def test_told_to_stop_it_prepares_no_further(
    settings: Settings, store: WorkerStore, drain: Drain, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopping = threading.Event()
    prepared = []

    def look(runner: Any, item: Item) -> None:
        prepared.append(item)
        stopping.set()
        preprocess(runner, item)

    monkeypatch.setattr("modelmill_worker.drain.preparation.preprocess", look)
    job_id = submit_batched(settings, "noop", 100)
    assert drain.run(model("noop", settings), stopping) is True
    assert len(prepared) <= settings.preprocess_threads
    (record,) = records(store, [job_id])
    assert (record.status, record.deliveries) == (Status.STARTING, 0)


@pytest.mark.parametrize(("max_wait_ms", "sizes"), [(None, [1, 1]), (5000, [2, 2])])
def test_a_batch_waits_for_more_only_where_its_model_says_so(
    settings: Settings, store: WorkerStore, drain: Drain, max_wait_ms: int | None, sizes: list[int]
) -> None:
    catalogue = Catalogue.load(TEST_MODELS)
    changes = {"max_wait_ms": max_wait_ms, "max_batch": 2, "options": {"batch_s": 0.3}}
    entry = catalogue["slow"].model_copy(update=changes)
    loaded = LoadedModel(LoadContext(entry, current_device(), catalogue, settings)).load()
    ids = submit(settings, "slow", "a")
    worker = threading.Thread(target=drain.run, args=(loaded, threading.Event()))
    worker.start()
    wait_until(lambda: records(store, ids)[0].status is Status.RUNNING, what="the claim")
    ids += submit(settings, "slow", "a")
    worker.join(timeout=20)
    assert [record.details["batch_size"] for record in records(store, ids)] == sizes
