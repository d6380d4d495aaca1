"""Rows are judged in their order, although refusals end first."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from modelmill.client.backfill.judge import FIRST_ROWS, MAX_WAITING, Judge


def stopped_after(fails: Iterable[bool], rate: float, *, order: Iterable[int] = ()) -> tuple[int, str]:
    """How many rows had ended when the judge stopped the run, and the reason."""
    outcomes = list(fails)
    judge = Judge(rate)
    places = list(order) or sorted(range(len(outcomes)), key=lambda place: not outcomes[place])
    for count, place in enumerate(places, 1):
        reason = judge.ended(place, failed=outcomes[place])
        if reason:
            return count, reason
    return len(outcomes), ""


HALF, BAD, GOOD = [False, True] * 100, [True] * 100, [False] * 100


@pytest.mark.parametrize(
    ("fails", "rate", "reason"),
    [
        (HALF, 0.6, ""),
        (HALF, 0.5, ""),
        (HALF, 0.05, "50 of the first 100 rows"),
        (GOOD + BAD, 0.5, ""),
        (GOOD + BAD, 0.05, "6 of the first 106 rows"),
        (BAD + GOOD, 0.6, "100 of the first 100 rows"),
        (BAD + GOOD, 1, ""),
        (BAD * 2, 0.99, "100 of the first 100 rows"),
        (GOOD * 9, 0, ""),
        ([*GOOD, True], 0, "1 of the first 101 rows"),
        ([True] * 99, 0, ""),
    ],
)
def test_the_order_of_the_ends_changes_nothing(fails: list[bool], rate: float, reason: str) -> None:
    count = len(fails)
    refusals_first = stopped_after(fails, rate)
    in_order = stopped_after(fails, rate, order=range(count))
    backwards = stopped_after(fails, rate, order=reversed(range(count)))

    for _, found in (refusals_first, in_order, backwards):
        assert found.partition(" failed")[0] == reason


def test_a_run_whose_rows_all_fail_stops_at_the_first_hundred() -> None:
    assert stopped_after([True] * 5000, 0.05)[0] == FIRST_ROWS


def test_one_row_that_does_not_end_cannot_hide_all_others() -> None:
    count, reason = stopped_after([False] + [True] * 9999, 0.05)
    assert count == MAX_WAITING + 1
    assert reason.startswith(f"at least {MAX_WAITING + 1} of the first {MAX_WAITING + 2} rows failed")

    # Half of the rows after it are good: it may not be more than the allowed part.
    assert stopped_after([False, *([True, False] * 5000)], 0.6, order=[*range(1, 10_001), 0]) == (10_001, "")
