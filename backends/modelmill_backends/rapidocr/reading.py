"""Puts texts into the order in which a person reads them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

SAME_LINE = 0.5
"""Boxes are on one line if they overlap vertically by this share of the lower box's height."""
SPANNING = 0.55
"""A piece wider than this share of the page belongs to no column."""
GUTTER = 0.5
"""The gap between columns is at least this many heights of a piece."""
COLUMN_PIECES, COLUMN_WIDTH, COLUMN_FILL = 3, 6.0, 0.4
"""A column of prose has at least so many pieces, with a median width of so many heights and of this share
of the column.

The columns of a table do not: its cells are read row by row.
"""


@dataclass(frozen=True, slots=True)
class Piece:
    """A text and its bounding box in pixels of the upright page."""

    text: str
    score: float
    left: float
    top: float
    right: float
    bottom: float
    index: int = 0
    """Its position in the list that it came from."""

    @property
    def width(self) -> float:
        return self.right - self.left

    @property
    def height(self) -> float:
        return self.bottom - self.top

    @property
    def middle(self) -> float:
        return (self.top + self.bottom) / 2

    def shares_line_with(self, other: Piece) -> bool:
        overlap = min(self.bottom, other.bottom) - max(self.top, other.top)
        return overlap >= SAME_LINE * min(self.height, other.height)

    def gap_to(self, other: Piece) -> float:
        """Horizontal distance of the two in pixels; negative if they overlap."""
        return max(self.left, other.left) - min(self.right, other.right)


def in_reading_order(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The lines of a page. Columns of prose are read one after the other, between pieces that span them."""
    gutter = _gutter(pieces)
    if gutter is None:
        return lines_of(pieces)
    spanning = sorted(
        (piece for piece in pieces if piece.left < gutter < piece.right), key=lambda piece: piece.middle
    )
    bands: list[list[Piece]] = [[] for _ in range(len(spanning) + 1)]
    middles = [piece.middle for piece in spanning]
    for piece in pieces:
        if not piece.left < gutter < piece.right:
            bands[bisect_left(middles, piece.middle)].append(piece)
    lines: list[list[Piece]] = []
    for index, band in enumerate(bands):
        left, right = _sides(band, gutter)
        both = _is_column(left) and _is_column(right)
        lines += in_reading_order(left) + in_reading_order(right) if both else lines_of(band)
        lines += [[piece] for piece in spanning[index : index + 1]]
    return lines


def _gutter(pieces: Sequence[Piece]) -> float | None:
    """Horizontal position of the widest gap between two columns; None if there are no columns."""
    if len(pieces) < 2 * COLUMN_PIECES:
        return None
    page = max(piece.right for piece in pieces) - min(piece.left for piece in pieces)
    least = GUTTER * median(piece.height for piece in pieces)
    narrow = sorted(
        (piece for piece in pieces if piece.width <= SPANNING * page), key=lambda piece: piece.left
    )
    gaps: list[tuple[float, float]] = []
    reach = narrow[0].right if narrow else 0.0
    for piece in narrow:
        if piece.left - reach >= least:
            gaps.append((piece.left - reach, (piece.left + reach) / 2))
        reach = max(reach, piece.right)
    for _, gutter in sorted(gaps, reverse=True):
        if all(map(_is_column, _sides(narrow, gutter))):
            return gutter
    return None


def _sides(pieces: Sequence[Piece], gutter: float) -> tuple[list[Piece], list[Piece]]:
    left = [piece for piece in pieces if piece.right <= gutter]
    return left, [piece for piece in pieces if piece.right > gutter]


def _is_column(pieces: Sequence[Piece]) -> bool:
    if len(pieces) < COLUMN_PIECES:
        return False
    width = median(piece.width for piece in pieces)
    extent = max(piece.right for piece in pieces) - min(piece.left for piece in pieces)
    return width >= max(COLUMN_WIDTH * median(piece.height for piece in pieces), COLUMN_FILL * extent)


def lines_of(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Lines from top to bottom, each from left to right.

    A piece joins the line whose nearest piece is at the same height. The mean height of the line does not
    matter, so lines may be tilted, as on a photo of a page.
    """
    lines: list[list[Piece]] = []
    tallest = max((piece.height for piece in pieces), default=0.0)
    near: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda piece: (piece.top + piece.bottom, piece.left)):
        # Pieces come from top to bottom, so no later one reaches the lines above.
        reach = piece.middle - tallest / 2
        near = [line for line in near if any(other.bottom >= reach for other in line)]
        neighbours = [line for line in near if min(line, key=piece.gap_to).shares_line_with(piece)]
        if neighbours:
            min(neighbours, key=lambda line: min(map(piece.gap_to, line))).append(piece)
        else:
            near.append([piece])
            lines.append(near[-1])
    for line in lines:
        line.sort(key=lambda piece: piece.left)
    return sorted(lines, key=lambda line: (min(piece.top for piece in line), line[0].left))


def text_of(lines: Sequence[Sequence[Piece]]) -> str:
    """The text of all lines, one below the other; a space separates the pieces of a line."""
    return "\n".join(" ".join(piece.text for piece in line) for line in lines)
