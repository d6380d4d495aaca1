"""Finds the texts of a page: a network marks them in tiles, and the marks of all are read as one map."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from modelmill_backends.rapidocr.pages import Level, Page, Tile

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

THRESHOLD, BOX_THRESHOLD, UNCLIP = 0.3, 0.5, 1.6
"""RapidOCR's own settings (its config.yaml)."""
MOST_BOXES = 20_000
"""Texts of one page at most. A page of 100 million pixels in letters of 12 pixels has 8,000 lines."""
FAINT, THIN = 0.15, 6.0
"""A mark of the first look with at least this probability, thinner than so many pixels, is small text. A
network marks the middle half of a line's height."""
BLANK = 12
"""If the values of a tile differ by less than this, it shows no text."""
COVERED, INSIDE, ALIKE = 0.5, 0.6, 0.3
"""A box of a coarser level is new if finer boxes cover less than this share of it, either of its area or, if
they are at least ``ALIKE`` as high, of its length. Finer boxes with ``INSIDE`` of their area in a new one are
fragments of its letters."""
CONTRAST, MOST_INK, LEAST_INK, GATHER, MOST_LOOKS = 24, 0.4, 5, (5, 15), 12
"""Ink differs from the page's colour by more than ``CONTRAST`` and covers at most ``MOST_INK`` of it. A text
is at least ``LEAST_INK`` pixels high; ``GATHER`` (height, width) joins its letters. More than ``MOST_LOOKS``
spots of ink without text are a drawing."""
LARGEST = 320
"""A box that is higher than so many pixels is seldom right: the detector sees parts of the letter only."""
PART = 256
"""Boxes that are compared with all others at once: 20,000 × 20,000 of them would take gigabytes."""

Marker = Callable[["NDArray[np.uint8]"], "NDArray[np.float32]"]
"""The network: pixels ``[height, width, 3]``, blue first, to probabilities ``[height, width]``."""


class Finder:
    """Quadrilaterals around the texts of a page."""

    def __init__(self, marker: Marker) -> None:
        from rapidocr.ch_ppocr_det.utils import DBPostProcess

        self._marker = marker
        # Maps are bytes, so probabilities from 0 to 1 are from 0 to 255.
        self._boxes = DBPostProcess(
            thresh=255 * THRESHOLD,
            box_thresh=255 * BOX_THRESHOLD,
            max_candidates=MOST_BOXES,
            unclip_ratio=UNCLIP,
            score_mode="fast",
            use_dilation=True,
        )

    def find(self, page: Page) -> NDArray[np.float32]:
        """Quadrilaterals ``[n, 4, 2]`` in pixels of the page, clockwise from the upper left."""
        import numpy as np

        coarse, first = page.levels
        marked = self._marks(first)
        found = self._quads(first, marked)
        huge = np.minimum(*_lengths(_bounds(found))) * max(first.scale) > LARGEST
        found, unsure = found[~huge], found[huge]
        if page.finest is not None:
            small = _small_text(marked)
            if small.any():
                found = merged(self._quads(page.finest, self._marks(page.finest, small)), found)
        large = self._quads(coarse, self._marks(coarse))
        unsure = np.concatenate([large[new(found, large)], unsure])
        missed = [*unsure[:MOST_LOOKS], *unexplained(first, np.concatenate([found, unsure]))]
        for quad in missed:
            found = merged(found, self._look(page, quad))
        return found

    def _look(self, page: Page, quad: NDArray[np.float32]) -> NDArray[np.float32]:
        """Quadrilaterals of the texts around one that a coarse level shows, at the size that a network reads
        best."""
        import numpy as np

        level, (left, top) = page.near(quad.min(axis=0), quad.max(axis=0))
        return self._quads(level, self._marks(level)) + np.array([left, top], dtype=np.float32)

    def _marks(self, level: Level, where: NDArray[np.bool_] | None = None) -> NDArray[np.uint8]:
        """The probabilities of a level as bytes; 0 in tiles without a true value in ``where``."""
        import numpy as np

        marked = np.zeros(level.size[::-1], dtype=np.uint8)
        for tile in level.tiles():
            if where is not None and not _touches(where, tile, level):
                continue
            pixels = level.cut(tile)
            if int(pixels.max()) - int(pixels.min()) < BLANK:
                continue
            top, bottom, left, right = tile.inner
            values = self._marker(pixels)[
                top - tile.top : bottom - tile.top, left - tile.left : right - tile.left
            ]
            marked[top:bottom, left:right] = np.rint(values * 255)
        return marked

    def _quads(self, level: Level, marked: NDArray[np.uint8]) -> NDArray[np.float32]:
        import numpy as np

        boxes, _ = self._boxes(marked[None, None], marked.shape)
        return level.on_page(np.asarray(boxes, dtype=np.float32).reshape(-1, 4, 2))


def _small_text(marked: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a level shows small text, ``[height, width]``."""
    import cv2
    import numpy as np

    small = np.zeros(marked.shape, dtype=bool)
    mask = (marked > 255 * FAINT).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
    around = int(2 * THIN)
    for left, top, width, height, area in stats[1:].tolist():
        if area < THIN * max(width, height):
            small[
                max(0, top - around) : top + height + around, max(0, left - around) : left + width + around
            ] = True
    return small


def _touches(where: NDArray[np.bool_], tile: Tile, level: Level) -> bool:
    """Whether a map of the whole page, at another size, has a true value in the inner part of a tile."""
    top, bottom, left, right = tile.inner
    down, across = where.shape[0] / level.size[1], where.shape[1] / level.size[0]
    part = where[int(top * down) : -int(-bottom * down // 1), int(left * across) : -int(-right * across // 1)]
    return bool(part.any())


def merged(fine: NDArray[np.float32], coarse: NDArray[np.float32]) -> NDArray[np.float32]:
    """The quadrilaterals of two levels, each text once.

    Those of the finer level count, unless they cover only a part of a text: the detector marks pieces of
    letters that are too large for it.
    """
    import numpy as np

    added = coarse[new(fine, coarse)]
    if not len(fine) or not len(added):
        return fine if len(fine) else added
    small, large = _bounds(fine), _bounds(added)
    inside = np.zeros(len(small), dtype=np.float32)
    for part in _parts(len(large)):
        inside = np.maximum(inside, _common(small, large[part]).max(axis=1))
    return np.concatenate([fine[inside <= INSIDE * _areas(small)], added])


def new(fine: NDArray[np.float32], coarse: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Which quadrilaterals of a coarser level are texts that a finer level does not have."""
    import numpy as np

    if not len(fine):
        return np.ones(len(coarse), dtype=bool)
    small, large = _bounds(fine), _bounds(coarse)
    found = np.zeros(len(large), dtype=bool)
    height = np.minimum(*_lengths(small))
    for part in _parts(len(large)):
        boxes = large[part]
        sides = _common_sides(small, boxes)
        area = sides.prod(axis=2).sum(axis=0)
        # A coarse level makes the box of a line too high, but not too long.
        across, down = _lengths(boxes)
        alike = (height[:, None] >= ALIKE * np.minimum(across, down)[None]) & (sides > 0).all(axis=2)
        along = np.where(across >= down, sides[:, :, 0], sides[:, :, 1])
        length = np.where(alike, along, 0).sum(axis=0)
        found[part] = (area < COVERED * across * down) & (length < COVERED * np.maximum(across, down))
    return found


def _bounds(quads: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    return np.concatenate([quads.min(axis=1), quads.max(axis=1)], axis=1)


def _lengths(boxes: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]


def _parts(length: int) -> Iterator[slice]:
    for start in range(0, length, PART):
        yield slice(start, start + PART)


def _areas(boxes: NDArray[np.float32]) -> NDArray[np.float32]:
    areas: NDArray[np.float32] = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def _common(some: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Areas ``[n, m]`` that boxes (left, top, right, lower) have in common."""
    common: NDArray[np.float32] = _common_sides(some, others).prod(axis=2)
    return common


def _common_sides(some: NDArray[np.float32], others: NDArray[np.float32]) -> NDArray[np.float32]:
    """Width and height ``[n, m, 2]`` of what boxes have in common."""
    import numpy as np

    low = np.maximum(some[:, None, :2], others[None, :, :2])
    high = np.minimum(some[:, None, 2:], others[None, :, 2:])
    common: NDArray[np.float32] = np.clip(high - low, 0, None)
    return common


def unexplained(level: Level, found: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """Rectangles ``[4, 2]`` around ink outside of the texts that were found, in pixels of the page.

    Only on pages of one colour: in a photo everything would be ink. If there is much of it, it is a drawing.
    """
    import cv2
    import numpy as np

    pixels = level.pixels
    sample = pixels[::7, ::7].reshape(-1, 3)
    shades, counts = np.unique(sample >> 4, axis=0, return_counts=True)
    ground = np.median(sample[(sample >> 4 == shades[counts.argmax()]).all(axis=1)], axis=0)
    ink = (np.abs(pixels.astype(np.int16) - ground.astype(np.int16)).max(axis=2) > CONTRAST).astype(np.uint8)
    if ink.mean() > MOST_INK:
        return []
    scale = np.array(level.scale, dtype=np.float32)
    for left, top, right, lower in (_bounds(found) * np.tile(scale, 2)).astype(int).tolist():
        ink[max(0, top - 2) : lower + 2, max(0, left - 2) : right + 2] = 0
    together = cv2.dilate(ink, np.ones(GATHER, dtype=np.uint8))
    _, labels, stats, _ = cv2.connectedComponentsWithStats(together, connectivity=8)
    rects = []
    for index, (left, top, width, height, _) in enumerate(stats.tolist()):
        part = ink[top : top + height, left : left + width] * (
            labels[top : top + height, left : left + width] == index
        )
        rows, columns = np.flatnonzero(part.any(axis=1)), np.flatnonzero(part.any(axis=0))
        if index == 0 or len(rows) < LEAST_INK or len(columns) < 2 or part.mean() < 0.04:
            continue
        low = np.array([left + columns[0], top + rows[0]]) / scale
        high = np.array([left + columns[-1] + 1, top + rows[-1] + 1]) / scale
        rects.append(np.array([low, [high[0], low[1]], high, [low[0], high[1]]], dtype=np.float32))
    return rects if len(rects) <= MOST_LOOKS else []
