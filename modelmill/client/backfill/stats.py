"""How far a backfill is, and how it ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RATE_OVER_S = 20.0
"""The rate is measured over this time."""
SAMPLE_EVERY_S = 0.2


@dataclass(slots=True)
class Stats:
    """How far a run is. The run changes it all the time: read it, do not keep it."""

    total: int | None = None
    """Rows of the input; None until they are counted."""
    complete: int = 0
    failed: int = 0
    errors: dict[str, int] = field(default_factory=dict)
    """Failed rows by error code."""
    warnings: dict[str, int] = field(default_factory=dict)
    """Rows with a warning, by its code."""
    skipped: dict[str, int] = field(default_factory=dict)
    """Entries of folders that are no rows, by the reason."""
    notes: list[str] = field(default_factory=list)
    """What the user may want to know, such as the names of the first such entries."""
    in_flight: int = 0
    """Rows that were taken from the input and are not yet written."""
    retried: int = 0
    """Jobs that failed and were submitted again."""
    trouble: str = ""
    """Why the run waits, such as a server that does not answer; empty if it does not wait."""
    resumed_at: int = 0
    """Rows that earlier runs into the same output have done."""
    started: float = field(default_factory=time.monotonic)
    _samples: deque[tuple[float, int]] = field(default_factory=deque, repr=False)

    @property
    def done(self) -> int:
        """Rows that are written, complete or failed."""
        return self.complete + self.failed

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.started

    @property
    def rate(self) -> float:
        """Rows per second, over the last ``RATE_OVER_S``."""
        if len(self._samples) < 2:
            return 0.0
        (first_at, first), (last_at, last) = self._samples[0], self._samples[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0

    @property
    def eta_s(self) -> float | None:
        """Seconds left at this rate; None if the rate or the number of rows is not known."""
        if self.total is None or not self.rate:
            return None
        return max(0, self.total - self.done) / self.rate

    def sample(self) -> None:
        """Notes how many rows are done, for the rate."""
        now = time.monotonic()
        if self._samples and now - self._samples[-1][0] < SAMPLE_EVERY_S:
            return
        self._samples.append((now, self.done))
        while now - self._samples[0][0] > RATE_OVER_S:
            self._samples.popleft()


@dataclass(frozen=True, slots=True)
class Summary:
    """How a run ended.

    Attributes:
        state: ``complete``: every row of the input is in the output. ``stopped``: too many rows failed.
        reason: Why it was stopped; empty if complete.
        output: The folder.
        run_id: The id of this output. It stays the same when the run is resumed.
        rows: Rows in the output.
        complete: Rows with a result.
        failed: Rows with an error.
        errors: Failed rows by error code.
        warnings: Rows with a warning, by its code.
        skipped: Entries of folders that are no rows, such as a link to nothing, by the reason.
        shards: The files, with ``name``, ``rows``, ``bytes`` and ``sha256``.
        seconds: How long this run took, without earlier runs into the same output.
        rows_per_s: Rows that this run wrote per second.
    """

    state: str
    reason: str
    output: Path
    run_id: str
    rows: int
    complete: int
    failed: int
    errors: Mapping[str, int]
    warnings: Mapping[str, int]
    skipped: Mapping[str, int]
    shards: Sequence[Mapping[str, Any]]
    seconds: float
    rows_per_s: float

    def as_data(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "state": self.state,
            **({"reason": self.reason} if self.reason else {}),
            "output": str(self.output),
            "run_id": self.run_id,
            "rows": self.rows,
            "complete": self.complete,
            "failed": self.failed,
            "errors": dict(self.errors),
            "warnings": dict(self.warnings),
            "skipped": dict(self.skipped),
            "shards": [dict(shard) for shard in self.shards],
            "seconds": round(self.seconds, 3),
            "rows_per_s": round(self.rows_per_s, 1),
        }
