"""A page at several sizes, and the tiles in which a network looks at them.

One pass over a long page at a legible size would take gigabytes, and scaling the page to fit one pass makes
its text illegible. So a page is searched in tiles that overlap. A large page is first searched at a third of
its size or more, and again at full size only where that shows small text. Every page is also searched at a
quarter of the first size: the detector misses letters as large as a page, and single words on an empty page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from modelmill.errors import ErrorCode, MediaError
from modelmill_tasks.item_warnings import WarningCode, warn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

STEP = 32
"""The detector takes sides of a multiple of this many pixels."""
EDGE = 8
"""At least so many pixels are added around a page: text that touches the edge is missed."""
TILE, MARGIN = 1440, 96
"""The longest side of a tile, and the part of it on each side that only shows the surroundings, in pixels."""
SHORT_SIDE = 736
"""Smaller pages are enlarged until the short side has this many pixels: RapidOCR's setting."""
MOST_ENLARGED = 4.0
STRIP, STRIP_HEIGHT, STRIP_ENLARGED = 8, 96, 1.5
"""A page that is ``STRIP`` times as long as wide has few lines. It is enlarged less."""
FIRST_AREA = 2048**2
"""Pixels of a page that is searched at full size at once, and of the first look at a larger one."""
FIRST_SHARE = 1 / 3
"""The first look has at least this share of the full size: text of 12 pixels is still seen."""
COARSE_SHARE = 1 / 4
LOOK_HEIGHT, LOOK_LENGTH, LOOK_AROUND, LOOK_EDGE = 48, 1280, 0.5, 32
"""A text that may have been missed is looked at alone: at this height, at most this long, with so many
heights of its surroundings, and with so many pixels of border."""
FULL_AREA, PADDED_AREA = 100_000_000, 200_000_000
"""Pixels of a page at full size, without its border and with it. The search takes half a second of a CPU for
a million pixels."""


@dataclass(frozen=True, slots=True)
class Tile:
    """A rectangle of a level: rows ``top`` to ``bottom`` and columns ``left`` to ``right``, with a margin.

    ``inner`` is the part without the margin, in the same order.
    """

    top: int
    bottom: int
    left: int
    right: int
    inner: tuple[int, int, int, int]


@dataclass(frozen=True, slots=True)
class Level:
    """A page at one size, with a border of one colour."""

    pixels: NDArray[np.uint8]
    """``[height, width, 3]`` without the border, red first."""
    scale: tuple[float, float]
    """Its pixels per pixel of the page, horizontally and vertically."""
    border: tuple[int, int]
    """Columns and rows of the border, at the left and at the top."""
    size: tuple[int, int]
    """Width and height with the border: multiples of ``STEP``."""
    colour: tuple[int, int, int]

    @property
    def area(self) -> int:
        return self.size[0] * self.size[1]

    def tiles(self) -> Iterator[Tile]:
        width, height = self.size
        columns = list(_spans(width))
        for top, bottom, first, last in _spans(height):
            for left, right, begin, end in columns:
                yield Tile(top, bottom, left, right, (first, last, begin, end))

    def cut(self, tile: Tile) -> NDArray[np.uint8]:
        """The pixels of a tile, blue first."""
        import numpy as np

        (left, top), (height, width) = self.border, self.pixels.shape[:2]
        found = np.empty((tile.bottom - tile.top, tile.right - tile.left, 3), dtype=np.uint8)
        rows = max(tile.top - top, 0), min(tile.bottom - top, height)
        columns = max(tile.left - left, 0), min(tile.right - left, width)
        if (rows[1] - rows[0], columns[1] - columns[0]) != found.shape[:2]:
            found[:] = self.colour[::-1]
        found[
            rows[0] + top - tile.top : rows[1] + top - tile.top,
            columns[0] + left - tile.left : columns[1] + left - tile.left,
        ] = self.pixels[rows[0] : rows[1], columns[0] : columns[1], ::-1]
        return found

    def on_page(self, quads: NDArray[np.float32]) -> NDArray[np.float32]:
        """Corners ``[n, 4, 2]`` in this level, as corners in pixels of the page."""
        import numpy as np

        moved = (quads - np.array(self.border, dtype=np.float32)) / np.array(self.scale, dtype=np.float32)
        height, width = self.pixels.shape[:2]
        bounds = np.array([width, height]) / np.array(self.scale)
        return np.asarray(np.clip(moved, 0, bounds), dtype=np.float32)


@dataclass(frozen=True, slots=True)
class Page:
    """An image, prepared for detection."""

    pixels: NDArray[np.uint8]
    """``[height, width, 3]``, red first. Texts are cut out of it."""
    levels: tuple[Level, ...]
    """From coarse to fine. The last is searched in full, unless ``finest`` is set."""
    finest: Level | None
    """The page at full size, if only its small text is searched at this size."""

    @property
    def area(self) -> int:
        """Pixels that the detector may have to look at."""
        return sum(level.area for level in self.levels) + (self.finest.area if self.finest else 0)

    def near(self, low: NDArray[np.float32], high: NDArray[np.float32]) -> tuple[Level, tuple[int, int]]:
        """A level of the part around a text, at the size that the detector finds best, and its corner."""
        short, long = sorted((high - low).tolist())
        around = LOOK_AROUND * max(short, 1.0)
        height, width = self.pixels.shape[:2]
        left, top = (max(0, int(edge - around)) for edge in low.tolist())
        right, bottom = (math.ceil(edge + around) for edge in high.tolist())
        part = self.pixels[top : min(height, bottom), left : min(width, right)]
        scale = min(LOOK_HEIGHT / max(short, 1.0), LOOK_LENGTH / max(long, 1.0), MOST_ENLARGED)
        return _level(part, scale, _edge_colour(part), LOOK_EDGE), (left, top)


def page_of(image: Image) -> Page:
    """An RGB image as a page. Runs in threads.

    Raises:
        MediaError: ``media_too_large``: the image is so long that the search would take too long.
    """
    import numpy as np

    width, height = image.size
    full = full_scale(width, height)
    if _padded_area(width, height, full) > PADDED_AREA:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The image of {width} × {height} pixels is too long to be searched for text; "
            "cut it into parts and send each of them.",
        )
    if full < 1:
        warn(
            WarningCode.IMAGE_SCALED_DOWN,
            f"The model saw the picture at {round(width * full)} × {round(height * full)} of its "
            f"{width} × {height} pixels; small text may be missed.",
        )
    pixels = np.asarray(image)
    first = max(FIRST_SHARE * full, min(full, math.sqrt(FIRST_AREA / (width * height))))
    if first > full / math.sqrt(2):
        # A second look at everything would cost less than half of the first look.
        first = full
    colour = _edge_colour(pixels)
    levels = tuple(_level(pixels, scale, colour) for scale in (COARSE_SHARE * first, first))
    finest = _level(pixels, full, colour) if first < full else None
    return Page(pixels, levels, finest)


def full_scale(width: int, height: int) -> float:
    """The largest size at which a page of so many pixels is searched, as a factor."""
    short, long = sorted((width, height))
    most = MOST_ENLARGED
    if long > STRIP * short:
        most = min(most, max(STRIP_ENLARGED, STRIP_HEIGHT / short))
    enlarged = min(max(1.0, SHORT_SIDE / short), most)
    return min(enlarged, math.sqrt(FULL_AREA / (width * height)))


def _padded_area(width: int, height: int, scale: float) -> int:
    return _padded(round(width * scale)) * _padded(round(height * scale))


def _padded(side: int, edge: int = EDGE) -> int:
    return -(-(side + 2 * edge) // STEP) * STEP


def _level(pixels: NDArray[np.uint8], scale: float, colour: tuple[int, int, int], edge: int = EDGE) -> Level:
    import cv2
    import numpy as np

    height, width = pixels.shape[:2]
    own = max(1, round(width * scale)), max(1, round(height * scale))
    scaled = pixels
    if own != (width, height):
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        scaled = np.asarray(cv2.resize(pixels, own, interpolation=method), dtype=np.uint8)
    size = _padded(own[0], edge), _padded(own[1], edge)
    border = (size[0] - own[0]) // 2, (size[1] - own[1]) // 2
    return Level(scaled, (own[0] / width, own[1] / height), border, size, colour)


def _edge_colour(pixels: NDArray[np.uint8]) -> tuple[int, int, int]:
    import numpy as np

    rows, columns = pixels[[0, -1]].reshape(-1, 3), pixels[:, [0, -1]].reshape(-1, 3)
    red, green, blue = np.median(np.concatenate([rows, columns]), axis=0).astype(int).tolist()
    return red, green, blue


def _spans(length: int) -> Iterator[tuple[int, int, int, int]]:
    """Begin and end of each tile along one side, and of its inner part. All are multiples of ``STEP``."""
    if length <= TILE:
        yield 0, length, 0, length
        return
    count = -(-length // (TILE - 2 * MARGIN))
    cuts = [round(length * index / count / STEP) * STEP for index in range(count + 1)]
    for begin, end in pairwise(cuts):
        yield max(0, begin - MARGIN), min(length, end + MARGIN), begin, end
