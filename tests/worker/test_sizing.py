"""The batch size is the fastest one that was measured and fits into memory."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from modelmill_worker.drain.sizing import BatchSizer


def run(sizer: BatchSizer, seconds_for: Callable[[int], float], batches: int = 400) -> BatchSizer:
    for _ in range(batches):
        sizer.ran(sizer.size, seconds_for(sizer.size))
    return sizer


@pytest.mark.parametrize("fastest", [1, 2, 4, 8, 16, 32])
def test_it_finds_the_size_with_the_most_items_a_second(fastest: int) -> None:
    # Up to the fastest size every batch takes the same time; larger batches take more time for each item.
    def seconds(size: int) -> float:
        return 0.1 if size <= fastest else 0.1 * (size / fastest) ** 1.5

    assert run(BatchSizer(32), seconds).best == fastest


def test_it_keeps_the_cap_where_larger_is_better() -> None:
    sizer = BatchSizer(16)
    sizes = []
    for _ in range(200):
        sizes.append(sizer.size)
        sizer.ran(sizer.size, 0.1)
    assert sizer.best == 16
    # Trials cost little: nearly all batches had the best size.
    assert sizes.count(16) > 0.9 * len(sizes)


def test_batches_that_take_no_time_are_not_tuned() -> None:
    sizer = run(BatchSizer(64), lambda size: 0.000004 * size**2)
    assert (sizer.size, sizer.rates) == (64, {})


def test_batches_that_were_not_full_tell_nothing() -> None:
    sizer = BatchSizer(16)
    for _ in range(100):
        sizer.ran(3, 0.5)
    assert sizer.rates == {}


def test_running_out_of_memory_lowers_the_cap_for_good() -> None:
    sizer = BatchSizer(32)
    sizer.out_of_memory(32)
    assert (sizer.cap, sizer.size) == (16, 16)
    sizer.out_of_memory(16)
    assert run(sizer, lambda _: 0.1).best == 8
    sizer.out_of_memory(1)
    assert (sizer.cap, sizer.size) == (1, 1)


def test_it_follows_a_model_that_became_slower_in_large_batches() -> None:
    sizer = run(BatchSizer(16), lambda _: 0.1)
    assert sizer.best == 16
    assert run(sizer, lambda size: 0.05 * size**1.5, 1000).best < 16


def test_what_was_learned_before_is_where_it_begins() -> None:
    assert BatchSizer(16, 4).size == 4
    assert BatchSizer(8, 32).size == 8


def test_only_what_was_measured_is_remembered() -> None:
    assert BatchSizer(16).learned == {}, "a cap that is raised later counts"
    tuned = run(BatchSizer(16), lambda _: 0.1)
    assert tuned.learned == {"best": tuned.best}
    tuned.out_of_memory(8)
    assert tuned.learned == {"best": 4, "cap": 4}


def test_what_was_remembered_is_not_forgotten_by_a_worker_that_learns_nothing() -> None:
    assert BatchSizer(4, 2, lowered=True).learned == {"best": 2, "cap": 4}
