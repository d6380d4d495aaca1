"""Warnings about items, from the runner to the job's document."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
import redis

from modelmill.catalogue import Catalogue
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import Claimed, Released, Return, Submission, WorkerStore, keys
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import current_device
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.item_warnings import ItemWarning, WarningCode
from modelmill_tasks.shared.examples import CAT
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.batches import DeviceLostError
from modelmill_worker.drain.context import DrainContext
from modelmill_worker.drain.drain import Drain
from modelmill_worker.drain.jobs import MAX_WARNINGS, close_job, open_job, part_text
from modelmill_worker.drain.leases import Leases
from tests.fixtures.runners import WarningRunner
from tests.support.jobs import TASK, records
from tests.support.paths import TEST_MODELS
from tests.support.processes import wait_until
from tests.support.store import submit


@pytest.fixture
def drain(settings: Settings, store: WorkerStore, tmp_path: Path) -> Iterator[Drain]:
    brief = settings.model_copy(update={"linger_s": 0.0})
    made = Drain(DrainContext(brief, store, Leases(store), Recorder(tmp_path), node="node", device="cpu"))
    yield made
    made.close()


@pytest.fixture
def model(settings: Settings) -> LoadedModel:
    catalogue = Catalogue.load(TEST_MODELS)
    return LoadedModel(LoadContext(catalogue["warning"], current_device(), catalogue, settings)).load()


def submission(classes: list[Any]) -> Submission:
    """A plain job of some classes, or a batched job if each item has its own."""
    batched = isinstance(classes[0], list)
    image = [CAT] * len(classes) if batched else CAT
    body = json.dumps({"image": image, "classes": classes}).encode()
    items = len(classes) if batched else 1
    return Submission(str(uuid.uuid4()), TASK, "warning", body, batched=batched, items=items)


def text_cut(item: int, name: str) -> dict[str, Any]:
    return {"item": item, "code": "text_cut", "message": f"The text {name} was cut."}


def output_cut(item: int) -> dict[str, Any]:
    return {"item": item, "code": "output_cut", "message": "The answer was cut."}


def test_each_warning_names_its_item(
    settings: Settings, store: WorkerStore, drain: Drain, model: LoadedModel
) -> None:
    names = [[f"a{n}", f"b{n}"] for n in range(6)]
    plain, batched = submit(settings, submission(["x", "y"]), submission(names))

    drain.run(model, threading.Event())

    one, many = records(store, [plain, batched])
    assert one.details["warnings"] == [text_cut(0, "x"), text_cut(0, "y"), output_cut(0)]
    expected = [[text_cut(n, f"a{n}"), text_cut(n, f"b{n}"), output_cut(n)] for n in range(6)]
    assert many.details["warnings"] == [warning for of_item in expected for warning in of_item]


def test_warnings_of_finished_items_survive_the_death_of_the_process(
    settings: Settings, store: WorkerStore, drain: Drain, model: LoadedModel, raw_redis: redis.Redis
) -> None:
    runner = cast("WarningRunner", model.runner(TASK))
    runner.lost_at = 2
    (job_id,) = submit(settings, submission([[f"a{n}"] for n in range(12)]))

    with pytest.raises(DeviceLostError):
        drain.run(model, threading.Event())
    # What the parent does after the death of a child.
    fence = cast("bytes", raw_redis.hget(keys.JOB + job_id, "fence")).decode()
    store.settle([Released(job_id, fence, Return.SUSPECT)])
    # Another thread saves them.
    wait_until(lambda: raw_redis.hlen(keys.PARTS + job_id) == 4, what="the first batch's items")
    drain.run(model, threading.Event())

    (record,) = records(store, [job_id])
    assert (record.status, record.deliveries) == (Status.COMPLETE, 2)
    assert runner.passes == 10, "the first batch did not run again, and a suspect's items run alone"
    expected = [[text_cut(n, f"a{n}"), output_cut(n)] for n in range(12)]
    assert record.details["warnings"] == [warning for of_item in expected for warning in of_item]


def opened(items: int, parts: dict[int, str] | None = None) -> Any:
    body = json.dumps({"image": [CAT] * items, "classes": ["a"]}).encode()
    return open_job(Claimed("id", "fence", TASK, True, 10, 1, 0.0), body, parts)


@pytest.mark.parametrize("count", [MAX_WARNINGS - 1, MAX_WARNINGS, MAX_WARNINGS + 1, 1000])
def test_a_document_holds_a_limited_number_of_warnings(count: int) -> None:
    job = opened(2)
    for item in job.items:
        item.result = "{}"
    job.items[1].warnings = [ItemWarning(WarningCode.TEXT_CUT, f"{n}") for n in range(count)]

    shown = close_job(job, {}).details["warnings"]

    kept = min(count, MAX_WARNINGS)
    assert [each["message"] for each in shown[:kept]] == [f"{n}" for n in range(kept)]
    assert {each["item"] for each in shown[:kept]} == {1}
    more = {"item": None, "code": "more_warnings"}
    assert shown[kept:] == (
        [more | {"message": f"{count - kept} more warnings are left out."}] if count > kept else []
    )


def test_a_finished_item_is_kept_with_its_warnings_and_read_in_either_form() -> None:
    first = opened(3)
    first.items[0].result = '{"a":"\\n"}'
    first.items[0].warnings = [ItemWarning(WarningCode.SOUND_CUT, "cut\nhere")]
    first.items[1].result = "{}"

    again = opened(3, {0: part_text(first.items[0]), 1: part_text(first.items[1])})

    assert [item.result for item in again.items] == ['{"a":"\\n"}', "{}", None]
    assert [item.warnings for item in again.items] == [first.items[0].warnings, [], []]
    assert part_text(first.items[1]) == "{}", "the form of version 1"


def test_an_item_with_a_warning_of_a_later_release_runs_again() -> None:
    job = opened(2, {0: '{"a":1}\n[["of_a_later_release","x"]]', 1: "{}"})

    assert [item.result for item in job.items] == [None, "{}"]
    assert (job.error, job.items[0].warnings) == (None, [])
