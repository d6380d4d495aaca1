"""Results that cannot be written: for good, or while Redis or the blob folder is full. Other jobs go on."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelmill.settings import MIB
from modelmill.store import keys
from tests.chaos.harness import DOT, System, body, probabilities, signal_all
from tests.support.blobs import unwritable
from tests.support.processes import wait_until

IN_REDIS, NEVER, IN_BLOB, TOO_LARGE = 50_000, 300_000, 400_000, 600_000
"""Numbers in a result of the model ``sized``: for Redis, above what this Redis takes, for the blob folder,
and above the limit of the setting."""
GOOD = 40


@pytest.fixture(scope="module")
def blobs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("blobs")


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory, blobs: Path) -> Iterator[System]:
    limits = {"blob_url": str(blobs), "blob_min_bytes": 3 * MIB // 2, "max_result_bytes": 2 * MIB}
    options = ("--proto-max-bulk-len", "1mb")
    folder = tmp_path_factory.mktemp("unwritten")
    with System(folder, limits, workers=("cpu", "cpu"), server_options=options) as running:
        yield running


@contextmanager
def stopped(system: System) -> Iterator[None]:
    """The workers' children stand still meanwhile, so that no job that is submitted runs."""
    wait_until(lambda: system.leased() == 0, what="idle workers")
    pids = [pid for worker in system.workers for pid in worker.children()]
    signal_all(pids, signal.SIGSTOP)
    try:
        yield
    finally:
        signal_all(pids, signal.SIGCONT)


def submit_good(system: System) -> list[str]:
    """Jobs of the same model and of another one."""
    half = GOOD // 2
    return system.submit("sized", *[body(2)] * half) + system.submit("echo", *[body(0.5)] * half)


def check_good(system: System, ids: list[str]) -> None:
    done = system.wait_all(ids)
    assert {each["status"] for each in done} == {"complete"}
    assert [probabilities(each) for each in done] == [[0.5] * 2] * (GOOD // 2) + [[0.5]] * (GOOD // 2)


def check_large(system: System, ids: list[str], numbers: int) -> None:
    done = system.wait_all(ids)
    assert [(each["status"], len(probabilities(each))) for each in done] == [("complete", numbers)] * len(ids)


def test_a_result_that_can_never_be_written_fails_alone(system: System) -> None:
    never = system.submit("sized", body(NEVER), body(TOO_LARGE))
    items = {"image": [DOT] * 3, "classes": [str(NEVER // 3)]}
    never += system.submit("sized", items, batched=True)
    good = submit_good(system)

    check_good(system, good)
    ended = system.wait_all(never)

    assert [each["error"]["code"] for each in ended] == ["result_too_large"] * 3
    assert {each["deliveries"] for each in ended} == {1}


def test_large_results_wait_for_a_full_redis_and_stopping_a_worker_gives_them_to_another(
    system: System,
) -> None:
    with stopped(system):
        large = system.submit("sized", *[body(IN_REDIS)] * 6)
        good = submit_good(system)
        system.redis.config_set("maxmemory", 1)
    try:
        check_good(system, good)
        wait_until(lambda: not system.redis.exists(keys.READY + "sized"), what="the claims")
        assert len(system.unended(large)) == 6
        stopping = system.workers[0]
        stopping.stop()
        assert system.broken_promises(large) == []
        assert len(system.unended(large)) == 6
    finally:
        system.redis.config_set("maxmemory", 0)
    check_large(system, large, IN_REDIS)
    deliveries = {each["deliveries"] for each in system.documents(large)}
    assert deliveries == {1}, "what a stopping worker gives back does not count"
    stopping.launch()
    wait_until(lambda: system.nodes_of(stopping), what="the worker")


def test_large_results_wait_for_a_full_blob_folder_through_the_death_of_a_child(
    system: System, blobs: Path
) -> None:
    with unwritable(blobs):
        with stopped(system):
            large = system.submit("sized", *[body(IN_BLOB)] * 6)
            good = submit_good(system)
        check_good(system, good)
        wait_until(lambda: not system.redis.exists(keys.READY + "sized"), what="the claims")
        assert len(system.unended(large)) == 6
        for worker in system.workers:
            signal_all(worker.children(), signal.SIGKILL)
        check_good(system, submit_good(system))
        assert len(system.unended(large)) == 6
    check_large(system, large, IN_BLOB)
    assert {each["deliveries"] for each in system.documents(large)} == {1}, "no death counts against them"
