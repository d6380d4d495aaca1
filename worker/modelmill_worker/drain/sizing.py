"""How many items a batch should have. This is measured, not configured.

A larger batch is faster on most GPUs and slower on some CPUs. A batch that is too large runs out of memory.
The sizer starts at the model's cap, tries half and double the size, and keeps the size with the most items
a second. If memory runs out, the cap is lowered and stays so.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WORTH_TUNING_S = 0.02
"""Batches that take less are not tuned: the cost around each batch decides, so fewer batches are better."""
TRIALS = 3
"""Full batches in one measurement."""
REST = 64
"""Full batches between two trials, once the best size has won one."""
BETTER = 1.05
"""How much faster another size must be to replace the best one. A smaller difference is noise."""


@dataclass
class BatchSizer:
    """The batch size of one model on one device.

    Attributes:
        cap: The largest size allowed: the model's, or less after memory ran out.
        best: The best size so far.
        rates: Items a second by size, as moving averages.
        lowered: Whether the cap was lowered because memory ran out.
    """

    cap: int
    best: int = 0
    rates: dict[int, float] = field(default_factory=dict)
    lowered: bool = False
    _known: bool = False
    _probe: int | None = None
    _seen: int = 0
    _rest: int = 0
    _downwards: bool = True

    def __post_init__(self) -> None:
        self._known = self.best > 0
        self.best = min(self.best or self.cap, self.cap)

    @property
    def size(self) -> int:
        """Items for the next batch."""
        return self.best if self._probe is None else self._probe

    @property
    def learned(self) -> dict[str, int]:
        """What the next worker on such a device starts with. Only what was measured: if an operator raises
        the cap later, the new cap counts."""
        best = {"best": self.best} if self._known or self.rates else {}
        return best | ({"cap": self.cap} if self.lowered else {})

    def ran(self, items: int, seconds: float) -> None:
        """A batch of ``items`` took ``seconds`` in ``forward``. Only full batches are measured."""
        if items != self.size or seconds <= 0:
            return
        if seconds < WORTH_TUNING_S and self._probe is None:
            return
        rate = items / seconds
        self.rates[items] = rate if items not in self.rates else 0.7 * self.rates[items] + 0.3 * rate
        self._seen += 1
        if self._probe is not None:
            if self._seen >= TRIALS:
                self._judge(self._probe)
        elif self._seen >= TRIALS and self._seen >= self._rest:
            self._try_next()

    def out_of_memory(self, items: int) -> None:
        """A batch of ``items`` did not fit."""
        self.cap = min(self.cap, max(1, items // 2))
        self.lowered = True
        self.best = min(self.best, self.cap)
        self._probe, self._seen, self._rest = None, 0, REST

    def _judge(self, probe: int) -> None:
        self._probe, self._seen = None, 0
        if self.rates[probe] > self.rates.get(self.best, 0.0) * BETTER:
            self.best, self._rest = probe, 0
        else:
            self._rest = REST
            self._downwards = not self._downwards

    def _try_next(self) -> None:
        neighbours = [self.best // 2, self.best * 2]
        for neighbour in neighbours if self._downwards else reversed(neighbours):
            if 1 <= neighbour <= self.cap:
                self._probe, self._seen = neighbour, 0
                return
        self._seen = 0
