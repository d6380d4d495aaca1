"""Cuts lines of text out of a page, straight and in the size that the networks need."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEXT_HEIGHT = 48
LONGEST = 64
"""A line that is longer than so many of its heights is cut between words and read in pieces."""
REACH = 8
"""The cut is at the widest gap of the last so many heights."""
WORD_GAP = 0.2
"""A gap of so many heights has a space in it."""
FLAT = 0.25
"""In a gap the values differ by less than this share of the line's own difference."""


WARPED = 16_000
"""Pixels that OpenCV straightens at once; it takes at most 32,767."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a line: columns ``begin`` to ``end``, and whether a space is before it."""

    begin: int
    end: int
    spaced: bool


def straight(page: NDArray[np.uint8], quad: NDArray[np.float32]) -> NDArray[np.uint8]:
    """The text in a quadrilateral ``[4, 2]``, clockwise from the upper left: ``[height, width, 3]``, BGR.

    It is cut out as it stands on the page: a line that runs from top to bottom is higher than wide. As
    RapidOCR's ``get_rotate_crop_image``, but for texts of any size.
    """
    import numpy as np

    width, height = _sides(quad)
    count = math.ceil(max(width, height) / WARPED)
    if count <= 1:
        return _warped(page, quad)
    across = width >= height
    begin, end = (quad[[0, 3]], quad[[1, 2]]) if across else (quad[[0, 1]], quad[[3, 2]])
    edges = [begin + (end - begin) * np.float32(index / count) for index in range(count + 1)]
    parts = [
        _warped(
            page,
            np.stack(
                [one[0], other[0], other[1], one[1]] if across else [one[0], one[1], other[1], other[0]]
            ),
        )
        for one, other in pairwise(edges)
    ]
    axis = 1 if across else 0
    same = min(part.shape[1 - axis] for part in parts)
    return np.concatenate([part[:same] if across else part[:, :same] for part in parts], axis=axis)


def _warped(page: NDArray[np.uint8], quad: NDArray[np.float32]) -> NDArray[np.uint8]:
    import cv2
    import numpy as np

    part, corners = _around(page, quad)
    width, height = _sides(quad)
    reduced = int(min(width, height) // (2 * TEXT_HEIGHT))
    if reduced > 1:
        # The network reads 48 rows. Without this, a large letter would keep one row of many.
        size = max(1, part.shape[1] // reduced), max(1, part.shape[0] // reduced)
        scale: NDArray[np.float32] = np.array([size[0] / part.shape[1], size[1] / part.shape[0]], np.float32)
        corners = np.asarray(corners * scale, np.float32)
        part = np.asarray(cv2.resize(part, size, interpolation=cv2.INTER_AREA), dtype=np.uint8)
        width, height = width / reduced, height / reduced
    across, down = max(1, int(width)), max(1, int(height))
    target = np.array([[0, 0], [across, 0], [across, down], [0, down]], dtype=np.float32)
    matrix = cv2.getPerspectiveTransform(corners.astype(np.float32), target)
    found = cv2.warpPerspective(
        part, matrix, (across, down), borderMode=cv2.BORDER_REPLICATE, flags=cv2.INTER_CUBIC
    )
    return np.ascontiguousarray(found[:, :, ::-1], dtype=np.uint8)


def _around(
    page: NDArray[np.uint8], quad: NDArray[np.float32]
) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """The part of a page around a quadrilateral, and the quadrilateral in this part."""
    import numpy as np

    height, width = page.shape[:2]
    # Cubic interpolation looks two pixels further.
    left, top = (max(0, math.floor(low) - 3) for low in quad.min(axis=0).tolist())
    right, bottom = quad.max(axis=0).tolist()
    part = page[top : min(height, math.ceil(bottom) + 3), left : min(width, math.ceil(right) + 3)]
    return part, quad - np.array([left, top], dtype=np.float32)


def _sides(quad: NDArray[np.float32]) -> tuple[float, float]:
    """Width and height of a quadrilateral: the longer of two opposite sides."""
    import numpy as np

    def length(one: int, other: int) -> float:
        return float(np.linalg.norm(quad[one] - quad[other]))

    return max(length(0, 1), length(2, 3)), max(length(0, 3), length(1, 2))


def pieces(line: NDArray[np.uint8]) -> list[Piece]:
    """A line that runs from left to right, cut between words into pieces that the network reads well."""
    import numpy as np

    height, length = line.shape[:2]
    if length <= LONGEST * height:
        return [Piece(0, length, False)]
    spread = (line.max(axis=0).astype(np.int16) - line.min(axis=0)).max(axis=1)
    empty = spread < max(1, FLAT * np.percentile(spread, 90))
    edges = np.flatnonzero(np.diff(np.concatenate([[False], empty, [False]]).astype(np.int8)))
    middles, widths = (edges[::2] + edges[1::2]) // 2, edges[1::2] - edges[::2]
    found: list[Piece] = []
    begin, spaced = 0, False
    while length - begin > LONGEST * height:
        end, gap = begin + LONGEST * height, 0
        near = np.flatnonzero((middles > end - REACH * height) & (middles < end))
        if len(near):
            best = near[widths[near].argmax()]
            end, gap = int(middles[best]), int(widths[best])
        found.append(Piece(begin, end, spaced))
        begin, spaced = end, gap >= WORD_GAP * height
    return [*found, Piece(begin, length, spaced)]


def line_input(crop: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
    """A text scaled to ``TEXT_HEIGHT``, at the left of ``width`` columns, ``[3, height, width]``; the rest
    are zeros."""
    import cv2
    import numpy as np

    own = min(width, math.ceil(TEXT_HEIGHT * crop.shape[1] / crop.shape[0]))
    values = np.zeros((3, TEXT_HEIGHT, width), dtype=np.float32)
    values[:, :, :own] = normalised(np.asarray(cv2.resize(crop, (own, TEXT_HEIGHT))))
    return values


def windows(crop: NDArray[np.uint8], width: int, most: int) -> Sequence[NDArray[np.uint8]]:
    """Parts of a line that are ``width`` columns long at ``TEXT_HEIGHT``, evenly spread over it."""
    height, length = crop.shape[:2]
    part = width * height // TEXT_HEIGHT
    if length <= part:
        return [crop]
    count = min(most, -(-length // part))
    starts = [(length - part) * index // max(1, count - 1) for index in range(count)]
    return [crop[:, start : start + part] for start in starts]


def normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes ``[height, width, 3]`` as numbers ``[3, height, width]`` from -1 to 1."""
    import numpy as np

    values = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    values /= 127.5
    values -= 1
    return values
