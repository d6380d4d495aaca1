"""Jobs opened into items, formed into batches, run and closed: without Redis and threads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from modelmill.catalogue import Catalogue
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import Claimed, Outcome
from modelmill_backends.contract import LoadContext, Prepared
from modelmill_backends.device import current_device
from modelmill_tasks.shared.examples import CAT
from modelmill_worker.drain.batches import (
    DeviceLostError,
    PassObserver,
    form_batches,
    preprocess,
    run_batch,
)
from modelmill_worker.drain.jobs import Job, close_job, open_job
from modelmill_worker.drain.sizing import BatchSizer
from tests.fixtures.runners import PickyRunner
from tests.support.paths import TEST_MODELS

TASK = "zero-shot-image-classification"


class CountingRunner(PickyRunner):
    """Remembers the sizes of its batches."""

    sizes: list[int]

    def forward(self, batch: Sequence[Prepared[Any]]) -> Sequence[int]:
        self.sizes.append(len(batch))
        return super().forward(batch)


def runner_context() -> LoadContext:
    catalogue = Catalogue.load(TEST_MODELS)
    return LoadContext(catalogue["picky"], current_device(), catalogue, Settings())


def runner() -> CountingRunner:
    made = CountingRunner(None, runner_context())
    made.sizes = []
    return made


def job_of(body: dict[str, Any], *, batched: bool = False, job_id: str = "id") -> Job:
    claimed = Claimed(job_id, "fence", TASK, batched, 10, 1, 0.5)
    return open_job(claimed, json.dumps(body).encode())


def plain(classes: list[str], job_id: str = "id") -> Job:
    return job_of({"image": CAT, "classes": classes}, job_id=job_id)


def end(job: Job) -> Outcome:
    assert job.is_done
    return close_job(job, {"device": "cpu"})


def process(jobs: Sequence[Job], max_batch: int = 8) -> list[int]:
    made = runner()
    items = [item for job in jobs for item in job.items]
    for item in items:
        preprocess(made, item)
    for batch in form_batches(items, max_batch):
        run_batch(made, batch)
    return made.sizes


def test_items_of_plain_and_batched_jobs_share_a_batch() -> None:
    batched = job_of({"image": [CAT] * 3, "classes": ["a", "b"]}, batched=True)
    jobs = [plain(["a"]), batched, plain(["a", "b", "c"])]
    assert process(jobs) == [5]
    outcome = end(batched)
    assert outcome.status is Status.COMPLETE
    assert json.loads(outcome.result or b"") == [{"probabilities": [0.5, 0.5]}] * 3
    assert outcome.details["batch_size"] == 5
    assert outcome.details["failed_items"] == 0


def test_batches_keep_within_the_cap() -> None:
    assert process([plain(["a"]) for _ in range(10)], max_batch=4) == [4, 4, 2]


def test_batches_keep_within_the_cost_and_like_costs_go_together() -> None:
    made = runner()
    items = [item for job in [plain(["a"]) for _ in range(5)] for item in job.items]
    for item, cost in zip(items, [1, 3, 1, 9, 1], strict=True):
        preprocess(made, item)
        item.prepared = Prepared(item.input, 1, cost)
    batches = [[items.index(item) for item in batch] for batch in form_batches(items, 4)]
    assert batches == [[0, 2, 4], [1], [3]]


def test_items_with_different_keys_do_not_share_a_batch() -> None:
    items = [item for job in [plain(["a"]) for _ in range(4)] for item in job.items]
    for index, item in enumerate(items):
        item.prepared, item.group = Prepared(item.input, 1), index % 2
    assert [[items.index(item) for item in batch] for batch in form_batches(items, 8)] == [[0, 2], [1, 3]]


def test_a_poison_item_fails_alone_and_the_rest_completes() -> None:
    jobs = [plain(["a"]) for _ in range(7)] + [plain(["poison"])]
    sizes = process(jobs)
    assert [end(job).status for job in jobs] == [Status.COMPLETE] * 7 + [Status.FAILED]
    error = end(jobs[-1]).error
    assert error is not None
    assert error["code"] == ErrorCode.INFERENCE_FAILED
    assert "poison in the batch" in error["message"]
    assert error["deliveries"] == 1
    assert sizes == [8, 4, 4, 2, 2, 1, 1]


def test_errors_before_and_after_the_forward_pass_stay_with_their_item() -> None:
    jobs = [plain(["a"]), plain(["bad"]), plain(["late"])]
    assert process(jobs) == [2]
    statuses = [end(job) for job in jobs]
    assert [outcome.status for outcome in statuses] == [Status.COMPLETE, Status.FAILED, Status.FAILED]
    assert [(outcome.error or {}).get("code") for outcome in statuses] == [
        None,
        ErrorCode.INVALID_MEDIA,
        ErrorCode.INFERENCE_FAILED,
    ]


def test_failed_items_of_a_batched_job_stand_in_their_places() -> None:
    job = job_of({"image": [CAT] * 3, "classes": [["a"], ["poison"], ["a", "b"]]}, batched=True)
    process([job])
    outcome = end(job)
    first, second, third = json.loads(outcome.result or b"")
    assert outcome.status is Status.COMPLETE
    assert outcome.details["failed_items"] == 1
    assert (first, third) == ({"probabilities": [1.0]}, {"probabilities": [0.5, 0.5]})
    assert second["error"]["code"] == "inference_failed"


def test_a_batched_job_fails_only_when_all_its_items_do() -> None:
    job = job_of({"image": [CAT] * 2, "classes": ["poison"]}, batched=True)
    process([job])
    assert end(job).status is Status.FAILED


def test_a_request_that_cannot_be_read_fails_its_job_only() -> None:
    for body in (None, b"{", b'{"classes": []}'):
        job = open_job(Claimed("id", "fence", TASK, False, 10, 1, 0.0), body)
        assert end(job).status is Status.FAILED
    unknown = open_job(Claimed("id", "fence", "no-such-task", False, 10, 1, 0.0), b"{}")
    assert (end(unknown).error or {})["code"] == ErrorCode.TASK_NOT_FOUND


def test_a_canceled_job_ends_as_canceled_and_a_failed_one_with_its_reason() -> None:
    job = plain(["a"])
    job.canceled = True
    assert end(job).status is Status.CANCELED
    failed = Job(plain(["a"]).claimed, error=ModelmillError(ErrorCode.MODEL_LOAD_FAILED, "no weights"))
    assert end(failed).error == {
        "code": "model_load_failed",
        "message": "no weights",
        "retryable": True,
        "deliveries": 1,
    }


def test_an_outcome_has_timings() -> None:
    job = plain(["a"])
    job.load_s = 0.2
    process([job])
    timings = end(job).details["timings"]
    assert timings.keys() == {"queued_s", "load_s", "preprocess_s", "forward_s", "postprocess_s"}
    assert (timings["queued_s"], timings["load_s"]) == (0.3, 0.2)


class HungryRunner(CountingRunner):
    """Fits two items into memory, and an item of the class "huge" not even alone."""

    def forward(self, batch: Sequence[Prepared[Any]]) -> Sequence[int]:
        self.sizes.append(len(batch))
        if len(batch) > 2 or any("huge" in prepared.item.classes for prepared in batch):
            raise MemoryError
        return [prepared.data for prepared in batch]


def hungry(jobs: Sequence[Job], sizer: BatchSizer) -> None:
    made = HungryRunner(None, runner_context())
    made.sizes = []
    items = [item for job in jobs for item in job.items]
    for item in items:
        preprocess(made, item)

    class Observer(PassObserver):
        def out_of_memory(self, items: int) -> None:
            sizer.out_of_memory(items)

    run_batch(made, items, Observer())


def test_running_out_of_memory_halves_the_batch_and_is_remembered() -> None:
    jobs, sizer = [plain(["a"]) for _ in range(8)], BatchSizer(8)
    hungry(jobs, sizer)
    assert {end(job).status for job in jobs} == {Status.COMPLETE}
    assert sizer.cap == 2


def test_an_item_that_does_not_fit_alone_fails_alone() -> None:
    jobs = [plain(["a"]), plain(["huge"])]
    hungry(jobs, BatchSizer(8))
    assert [end(job).status for job in jobs] == [Status.COMPLETE, Status.FAILED]
    assert (end(jobs[1]).error or {})["code"] == ErrorCode.OUT_OF_MEMORY


def test_a_lost_device_is_for_the_process_to_deal_with() -> None:
    class Lost(PickyRunner):
        def forward(self, batch: Sequence[Prepared[Any]]) -> Sequence[int]:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    made, job = Lost(None, runner_context()), plain(["a"])
    preprocess(made, job.items[0])
    with pytest.raises(DeviceLostError):
        run_batch(made, job.items)
    assert not job.is_done


def test_items_of_a_suspect_run_alone() -> None:
    claimed = Claimed("id", "fence", TASK, True, 10, 1, 0.0, suspect=True)
    body = json.dumps({"image": [CAT] * 3, "classes": ["a"]}).encode()
    assert process([open_job(claimed, body), plain(["a"]), plain(["a"])]) == [1, 1, 1, 2]


def test_items_that_an_earlier_delivery_finished_do_not_run_again() -> None:
    claimed = Claimed("id", "fence", TASK, True, 10, 2, 0.0)
    body = json.dumps({"image": [CAT] * 4, "classes": ["a", "b"]}).encode()
    crashed = '{"error":{"code":"worker_crashed","message":"…","retryable":false}}'
    job = open_job(claimed, body, {1: '{"probabilities":[1.0,0.0]}', 2: crashed})
    assert process([job]) == [2]
    outcome = end(job)
    result = json.loads(outcome.result or b"")
    assert [next(iter(item)) for item in result] == [
        "probabilities",
        "probabilities",
        "error",
        "probabilities",
    ]
    assert result[1] == {"probabilities": [1.0, 0.0]}
    assert outcome.details["failed_items"] == 1
