"""One bad input in a batch of good ones: it alone fails, with its own reason."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.harness import System, body, probabilities, signal_all
from tests.fixtures.photos import SUBJECTS, data_url, photo
from tests.support.exhaustive import exhaustive
from tests.support.processes import wait_until

GOOD = [[number / 100, number / 1000] for number in range(31)]
PLACE = 11
"""The index of the bad input among the good ones."""
LOAD_TIMEOUT_S = 150.0
"""The first load exports the network."""


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    settings = {"batch_timeout_s": 1.5}
    with System(tmp_path_factory.mktemp("poison"), settings, workers=("cpu",)) as running:
        yield running


def submit_together(system: System, model: str, bodies: list[dict[str, Any]]) -> list[str]:
    """Submits jobs so that one claim takes them all: the child is stopped meanwhile."""
    (worker,) = system.workers
    wait_until(worker.children, what="a child")
    children = worker.children()
    signal_all(children, signal.SIGSTOP)
    try:
        return system.submit(model, *bodies)
    finally:
        signal_all(children, signal.SIGCONT)


def run_with_poison(
    system: System, *kind: str, good: int = len(GOOD)
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The good jobs' documents and the bad one's error."""
    bodies = [body(*row) for row in GOOD[:good]]
    bodies.insert(PLACE, body(*kind))
    done = system.wait_all(submit_together(system, "fragile", bodies))
    poison = done.pop(PLACE)
    assert [each["status"] for each in done] == ["complete"] * good
    assert [probabilities(each) for each in done] == GOOD[:good]
    assert poison["status"] == "failed"
    return done, poison["error"]


def test_an_exception_fails_its_item_alone(system: System) -> None:
    done, error = run_with_poison(system, "exception")
    assert error["code"] == "inference_failed"
    assert "this input is refused" in error["message"]
    # The batch was halved, and no job needed a second delivery.
    assert max(each["batch_size"] for each in done) == 16
    assert {each["deliveries"] for each in done} == {1}


@pytest.mark.parametrize("good", [12, exhaustive(31)])
def test_a_segfault_fails_its_item_alone(system: System, good: int) -> None:
    done, error = run_with_poison(system, "segfault", good=good)
    assert error["code"] == "worker_crashed"
    # They were in the batch that died, and ran once more, each alone.
    assert {(each["deliveries"], each["batch_size"]) for each in done} == {(2, 1)}


@pytest.mark.chaos
def test_a_hang_that_holds_the_interpreter_fails_its_item_alone(system: System) -> None:
    done, error = run_with_poison(system, "hang")
    assert error["code"] == "worker_crashed"
    assert {(each["deliveries"], each["batch_size"]) for each in done} == {(2, 1)}


@pytest.mark.chaos
@pytest.mark.parametrize("kind", ["segfault", "hang"])
def test_an_input_that_kills_its_process_while_it_is_prepared_fails_alone(system: System, kind: str) -> None:
    done, error = run_with_poison(system, kind, "early")
    assert error["code"] == "worker_crashed"
    # All jobs that were prepared together became suspects. Then each ran once, alone.
    assert {(each["deliveries"], each["batch_size"]) for each in done} == {(2, 1)}


@pytest.mark.chaos
def test_a_job_that_runs_while_the_next_is_prepared_is_not_blamed_for_it(system: System) -> None:
    slow = [body(*row) for row in GOOD[:4]]
    done = system.wait_all(
        submit_together(system, "fragile-slow", [*slow, body("segfault", "early"), *slow]), timeout_s=90
    )
    poison = done.pop(4)
    assert poison["error"]["code"] == "worker_crashed"
    assert [probabilities(each) for each in done] == GOOD[:4] * 2


@pytest.mark.chaos
def test_a_segfault_in_a_batched_job_fails_its_item_alone(system: System) -> None:
    rows: list[list[Any]] = [*GOOD[:PLACE], ["segfault"], *GOOD[PLACE:]]
    job = {"image": [body()["image"]] * 32, "classes": [[str(name) for name in row] for row in rows]}
    (done,) = system.wait_all(system.submit("fragile", job, batched=True))
    assert done["status"] == "complete"
    poison = done["result"].pop(PLACE)
    assert poison["error"]["code"] == "worker_crashed"
    assert [each["probabilities"] for each in done["result"]] == GOOD


def test_a_model_that_dies_while_loading_does_not_burn_its_queue(system: System) -> None:
    doomed = system.submit("crashing-load", *[body("a")] * 5)
    fine = system.submit("echo", *(body(*row) for row in GOOD))
    assert [probabilities(each) for each in system.wait_all(fine)] == GOOD
    for each in system.wait_all(doomed):
        # The model causes the crash, and no input.
        assert (each["status"], each["error"]["code"]) == ("failed", "model_load_failed")
    assert system.client.get("/api/models/crashing-load/status").json()["status"] == "failed"
    assert [probabilities(each) for each in system.wait_all(system.submit("echo", body(0.5)))] == [[0.5]]


def test_an_allocation_that_cannot_be_fails_its_item_alone(system: System) -> None:
    done, error = run_with_poison(system, "memory")
    assert error["code"] == "out_of_memory"
    assert {each["deliveries"] for each in done} == {1}


def test_an_allocation_bomb_does_not_make_the_batches_of_others_smaller(system: System) -> None:
    run_with_poison(system, "memory")
    done = system.wait_all(submit_together(system, "fragile", [body(*row) for row in [*GOOD, *GOOD[:1]]]))
    # A batch counts as too large only if its halves fit. Here a single input did not fit.
    assert {each["batch_size"] for each in done} == {32}


def crops() -> list[Any]:
    """31 crops of real photos, all different."""
    found = []
    for name in SUBJECTS:
        image = photo(name)
        width, height = image.size
        for part in range(4):
            left, top = width * part // 12, height * part // 12
            found.append(image.crop((left, top, left + width * 2 // 3, top + height * 2 // 3)))
    return [image.resize((300, 260)) for image in found[:31]]


@pytest.mark.exhaustive
def test_a_truncated_photo_among_31_good_ones_on_the_real_model(tmp_path: Path, cache_dir: Path) -> None:
    classes = sorted(set(SUBJECTS.values()))
    images = [data_url(image) for image in crops()]
    bodies = [{"image": image, "classes": classes} for image in images]
    # Its header is complete, so the API accepts it.
    head, _, encoded = images[0].partition(",")
    truncated = f"{head},{encoded[: len(encoded) // 8 * 4]}"
    with System(tmp_path, {"cache_dir": cache_dir, "lease_s": 5.0}) as system:
        alone = [
            probabilities(system.wait_all(system.submit("conse-lite0", each), LOAD_TIMEOUT_S)[0])
            for each in bodies
        ]
        mixed = [*bodies[:11], {"image": truncated, "classes": classes}, *bodies[11:]]
        done = system.wait_all(submit_together(system, "conse-lite0", mixed))
    poison = done.pop(11)
    assert poison["status"] == "failed"
    assert poison["error"]["code"] == "invalid_media"
    assert "truncated" in poison["error"]["message"]
    assert [each["status"] for each in done] == ["complete"] * 31
    assert max(each["batch_size"] for each in done) > 1
    for together, by_itself in zip(done, alone, strict=True):
        assert probabilities(together) == pytest.approx(by_itself, abs=1e-4)
