"""Which way a page and its lines are turned.

A page without EXIF data may have been scanned or photographed sideways or upside down. The lines tell: most
of them run from left to right, or from top to bottom, and a network says whether a line is upside down. One
line may mislead it ("SOS NOON" reads both ways), so the page is turned as most of its text says, and a line
that disagrees is read both ways.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SIDEWAYS = 1.5
"""RapidOCR takes a text that is so many times as high as wide for one that runs from top to bottom."""
CLEAR = 2.0
"""A text that is so many times as long as wide shows how the lines of the page run."""
MOST_WEIGHT = 10.0
"""A line counts by its length, in heights, but not by more than this."""
SURE = 0.9
"""A line is upside down if the network is that sure, and surely upright if it is that sure of this."""
SHARE, MUCH = 0.8, 30.0
"""If lines of less than this weight say so with this share of it, both ways are read."""
DOUBT = 0.08
"""How much better the score of a reading must be to count against the likelier one."""
FEW = 4
"""If no text is ``CLEAR`` and there are at most so many, they are read in all four ways."""
LETTER = 3.0
"""A text that is less than so many times as high as wide may be one upright letter, such as a 1."""


@dataclass(frozen=True, slots=True)
class Line:
    """A text as it stands on the page: its width and height, and how sure the network is that it is upside
    down, after a text that runs from top to bottom was turned by a quarter to the left."""

    width: int
    height: int
    turned: float

    @property
    def sideways(self) -> bool:
        return self.height >= SIDEWAYS * self.width

    @property
    def aspect(self) -> float:
        return max(self.width, self.height) / max(1, min(self.width, self.height))

    @property
    def weight(self) -> float:
        return min(self.aspect, MOST_WEIGHT)


@dataclass(frozen=True, slots=True)
class Plan:
    """How a page may be turned and how its lines are to be read, in quarter turns to the left.

    Attributes:
        turns: The turns of the whole page that may make it upright; the likelier first.
        lines: For each line, the turns in which to read it; the likelier first.
    """

    turns: tuple[int, ...]
    lines: Sequence[tuple[int, ...]]


def plan(lines: Sequence[Line]) -> Plan:
    """What to read, so that ``settle`` can decide."""
    turns = _turns(lines)
    return Plan(turns, [_line_turns(line, turns) for line in lines])


def _turns(lines: Sequence[Line]) -> tuple[int, ...]:
    clear = [line for line in lines if line.aspect >= CLEAR]
    if not clear:
        # Single letters and short words.
        return (0, 1, 3, 2) if 0 < len(lines) <= FEW else (0,)
    tall = sum(line.weight for line in clear if line.sideways)
    wide = sum(line.weight for line in clear if not line.sideways)
    first = 1 if tall > wide else 0
    if first and all(line.aspect < LETTER for line in clear):
        return (0, 1, 3)
    along = [line for line in clear if line.sideways == bool(first)]
    weight = sum(line.weight for line in along)
    share = sum(line.weight * line.turned for line in along) / weight
    if share < 1 - SHARE:
        return (first,)
    if share > SHARE and weight >= MUCH:
        return (first + 2,)
    return (first, first + 2)


def _line_turns(line: Line, turns: tuple[int, ...]) -> tuple[int, ...]:
    own = 1 if line.sideways else 0
    along = turns[0] % 2 == own
    if len(turns) > 2 or (len(turns) > 1 and (along or line.aspect < SIDEWAYS)):
        return turns
    turn = turns[0]
    if along:
        says = line.turned if turn < 2 else 1 - line.turned
        return (turn, (turn + 2) % 4) if says > SURE else (turn,)
    if line.aspect < SIDEWAYS:
        return (turn,)
    if line.turned > SURE:
        sides: tuple[int, ...] = (own + 2,)
    else:
        sides = (own,) if line.turned < 1 - SURE else (own, own + 2)
    return (*turns, *sides) if line.aspect < LETTER else sides


def settle(plan: Plan, lines: Sequence[Line], scores: Sequence[Sequence[float]]) -> tuple[int, list[int]]:
    """The turn of the page, and for each line the index of its best reading.

    Args:
        plan: The result of ``plan`` for these lines.
        lines: The lines of a page.
        scores: For each line, the score of each reading of the plan.
    """
    totals = [0.0] * len(plan.turns)
    weights = 1e-9
    for line, turns, found in zip(lines, plan.lines, scores, strict=True):
        if turns == plan.turns:
            weights += line.weight
            totals = [total + line.weight * score for total, score in zip(totals, found, strict=True)]
    totals[0] += weights * (DOUBT if plan.turns[0] == 0 else 0.0)
    turn = plan.turns[totals.index(max(totals))]
    best = []
    for turns, found in zip(plan.lines, scores, strict=True):
        # A line is read as the page is turned, unless another way is clearly better.
        liked = [score + (DOUBT if way == turn else 0.0) for way, score in zip(turns, found, strict=True)]
        best.append(liked.index(max(liked)))
    return turn, best


def turned_box(
    box: tuple[float, float, float, float], size: tuple[int, int], turn: int
) -> tuple[float, float, float, float]:
    """A rectangle (left, top, right, lower) on a page that was turned to the left by quarters.

    Args:
        box: On the page as it was.
        size: Width and height of the page as it was.
        turn: Number of quarter turns.
    """
    left, top, right, lower = box
    width, height = size
    if turn == 1:
        return top, width - right, lower, width - left
    if turn == 2:
        return width - right, height - lower, width - left, height - top
    if turn == 3:
        return height - lower, left, height - top, right
    return box


def turned_pixels(pixels: NDArray[np.uint8], turn: int) -> NDArray[np.uint8]:
    """An image that is turned to the left by quarters."""
    import numpy as np

    return np.ascontiguousarray(np.rot90(pixels, turn))
