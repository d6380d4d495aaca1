"""Whether too many rows have failed."""

from __future__ import annotations

from collections import deque

FIRST_ROWS = 100
"""The rate of errors is judged after this many rows of the run."""
MAX_WAITING = 1000
"""If more rows than this have ended after one that has not, that one counts as good for the moment."""

_OPEN, _GOOD, _FAILED = range(3)


class Judge:
    """Judges the rate of errors over rows in the order in which the run took them.

    Rows do not end in this order: the server refuses a row at once, and a good one takes its time. So the
    rate among the rows that have ended says nothing. A row is judged when it and all rows before it have
    ended.

    Args:
        max_error_rate: The part of the rows that may fail.
    """

    def __init__(self, max_error_rate: float) -> None:
        self._max_error_rate = max_error_rate
        self._judged = self._failed = 0
        self._later: deque[int] = deque()
        """The rows after the judged ones, up to the last that has ended."""
        self._later_ended = self._later_failed = 0

    def ended(self, place: int, *, failed: bool) -> str:
        """One row has ended.

        Args:
            place: How many rows the run took before it.
            failed: Whether it failed.

        Returns:
            Why the run must stop; empty if it goes on.
        """
        at = place - self._judged
        while len(self._later) <= at:
            self._later.append(_OPEN)
        self._later[at] = _FAILED if failed else _GOOD
        self._later_ended += 1
        self._later_failed += failed
        while self._later and self._later[0] != _OPEN:
            is_failed = self._later.popleft() == _FAILED
            self._judged += 1
            self._failed += is_failed
            self._later_ended -= 1
            self._later_failed -= is_failed
            if self._is_over(self._failed, self._judged):
                return self._reason(f"{self._failed} of the first {self._judged} rows")
        taken = self._judged + len(self._later)
        at_least = self._failed + self._later_failed
        if self._later_ended > MAX_WAITING and self._is_over(at_least, taken):
            return self._reason(f"at least {at_least} of the first {taken} rows")
        return ""

    def _is_over(self, failed: int, rows: int) -> bool:
        return rows >= FIRST_ROWS and failed > rows * self._max_error_rate

    def _reason(self, which: str) -> str:
        return f"{which} failed, which is more than the allowed part of {self._max_error_rate:g}"
