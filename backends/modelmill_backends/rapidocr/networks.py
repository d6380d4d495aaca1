"""RapidOCR's three networks: they find text, tell whether it is upside down, and read it.

RapidOCR runs them on one image at a time. Here the texts of all images of a batch share passes, and the
result of one text does not depend on the others. RapidOCR's own functions interpret the networks' outputs
and turn scores into characters. Source: PaddleOCR, PP-OCRv4 to v6.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import LoadContext
from modelmill_backends.failures import load_failed, module_missing
from modelmill_backends.onnx.session import open_session
from modelmill_backends.rapidocr.directions import Line, Plan, plan, settle, turned_pixels
from modelmill_backends.rapidocr.lines import (
    TEXT_HEIGHT,
    Piece,
    line_input,
    normalised,
    pieces,
    straight,
    windows,
)
from modelmill_backends.rapidocr.marking import Finder
from modelmill_backends.rapidocr.pages import Page

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEXT_WIDTH = 320
TURN_WIDTH, TURN_WINDOWS = 192, 3
"""The turner sees so many columns of a line at a time. RapidOCR squeezes the whole line into them, which
misleads the network if the line is long."""
WIDTH_STEP = 64
"""Texts are padded to a multiple of this: the padding depends on the text only, and many share a width."""
PASS_WIDTH = 8192
"""Total width of the texts of one pass, in pixels: their scores for 18,710 characters take 80 MB."""


@dataclass(frozen=True, slots=True)
class Found:
    """A text: its quadrilateral ``[4, 2]`` in pixels of the original, its characters and its score."""

    corners: NDArray[np.float32]
    text: str
    score: float


@dataclass(frozen=True, slots=True)
class PageText:
    """The texts of a page in any order, and the quarter turns to the left that make the page upright."""

    found: list[Found]
    turn: int


class Networks:
    """The loaded networks.

    Args:
        detector: Session that marks text.
        turner: Session that detects text that is upside down; None leaves all texts unchanged.
        reader: Session that reads a line of text; its metadata list its characters.
    """

    def __init__(self, detector: Any, turner: Any | None, reader: Any) -> None:
        from rapidocr.ch_ppocr_rec.utils import CTCLabelDecode

        self._detector, self._turner, self._reader = detector, turner, reader
        self._finder = Finder(self._mark)
        characters = reader.get_modelmeta().custom_metadata_map["character"].splitlines()
        self._characters = CTCLabelDecode(character=characters)

    @classmethod
    def open(cls, context: LoadContext, folder: Path, files: Sequence[str | None]) -> Networks:
        """Opens the files of detector, turner and reader.

        Raises:
            ModelmillError: ``model_load_failed``: a file or a package is missing, or the reader has no
                characters.
        """
        try:
            import cv2
            import rapidocr.utils.log  # noqa: F401 - the import sets up its logger
        except ModuleNotFoundError as error:
            raise module_missing(context.entry, error.name, ("ocr",)) from None
        logging.getLogger("RapidOCR").setLevel(logging.ERROR)
        cv2.setNumThreads(context.device.threads)
        for name in files:
            if name is not None and not (folder / name).is_file():
                raise load_failed(context.entry, f"its folder holds no {name}")
        detector, turner, reader = (open_session(folder / name, context) if name else None for name in files)
        if reader is None or "character" not in reader.get_modelmeta().custom_metadata_map:
            raise load_failed(context.entry, "its recognizer's metadata do not list its characters")
        return cls(detector, turner, reader)

    def read(self, pages: Sequence[Page]) -> list[PageText]:
        """The texts of each page."""
        quads = [self._finder.find(page) for page in pages]
        crops = [
            [straight(page.pixels, quad) for quad in found] for page, found in zip(pages, quads, strict=True)
        ]
        lines = self._lines(crops)
        plans = [plan(found) for found in lines]
        read = self._read_as_planned(crops, plans)
        return [_page_text(*one) for one in zip(quads, lines, plans, read, strict=True)]

    def _mark(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """The probability of text at each pixel of a tile."""
        # Tiles differ in size, so each has its own pass.
        (marked,) = _run(self._detector, normalised(pixels)[None])
        probabilities: NDArray[np.float32] = marked[0, 0]
        return probabilities

    def _lines(self, crops: Sequence[Sequence[NDArray[np.uint8]]]) -> list[list[Line]]:
        """The texts of each page, each with the turner's judgement of it."""
        import numpy as np

        lines = [[Line(crop.shape[1], crop.shape[0], 0.0) for crop in page] for page in crops]
        if self._turner is None:
            return lines
        parts: list[NDArray[np.uint8]] = []
        counts: list[list[int]] = []
        for page, judged in zip(crops, lines, strict=True):
            counts.append([])
            for crop, line in zip(page, judged, strict=True):
                seen = windows(turned_pixels(crop, 1) if line.sideways else crop, TURN_WIDTH, TURN_WINDOWS)
                parts += seen
                counts[-1].append(len(seen))
        turned: list[float] = []
        for rows in _chunks(range(len(parts)), TURN_WIDTH):
            (scores,) = _run(self._turner, np.stack([line_input(parts[row], TURN_WIDTH) for row in rows]))
            turned += scores[:, 1].tolist()
        each = iter(turned)
        return [
            [
                Line(line.width, line.height, sum(next(each) for _ in range(count)) / count)
                for line, count in zip(judged, page, strict=True)
            ]
            for judged, page in zip(lines, counts, strict=True)
        ]

    def _read_as_planned(
        self, crops: Sequence[Sequence[NDArray[np.uint8]]], plans: Sequence[Plan]
    ) -> list[list[list[tuple[str, float]]]]:
        """Each page's texts, each in all ways of its plan: characters and score."""
        parts: list[NDArray[np.uint8]] = []
        cut: list[list[list[list[Piece]]]] = []
        for page, planned in zip(crops, plans, strict=True):
            cut.append([])
            for crop, turns in zip(page, planned.lines, strict=True):
                cut[-1].append([])
                for turn in turns:
                    line = turned_pixels(crop, turn)
                    cut[-1][-1].append(pieces(line))
                    parts += [line[:, piece.begin : piece.end] for piece in cut[-1][-1][-1]]
        read = iter(self._recognise(parts))
        return [
            [[_joined([(piece, *next(read)) for piece in way]) for way in text] for text in page]
            for page in cut
        ]

    def _recognise(self, crops: Sequence[NDArray[np.uint8]]) -> list[tuple[str, float]]:
        import numpy as np

        widths: dict[int, list[int]] = {}
        for row, crop in enumerate(crops):
            widths.setdefault(_padded_width(crop), []).append(row)
        read: list[tuple[str, float]] = [("", 0.0)] * len(crops)
        for width, members in sorted(widths.items()):
            for rows in _chunks(members, width):
                (scores,) = _run(self._reader, np.stack([line_input(crops[row], width) for row in rows]))
                for row, (text, score) in zip(rows, self._characters(scores)[0], strict=True):
                    read[row] = text, float(score)
        return read


def _run(session: Any, values: NDArray[np.float32]) -> Any:
    return session.run(None, {session.get_inputs()[0].name: values})


def _page_text(
    quads: NDArray[np.float32],
    lines: Sequence[Line],
    planned: Plan,
    read: Sequence[Sequence[tuple[str, float]]],
) -> PageText:
    turn, best = settle(planned, lines, [[score for _, score in ways] for ways in read])
    found = [Found(quad, *ways[way]) for quad, ways, way in zip(quads, read, best, strict=True)]
    return PageText(found, turn)


def _joined(parts: Sequence[tuple[Piece, str, float]]) -> tuple[str, float]:
    """The text of a line's pieces, and the mean of their scores."""
    text = "".join(
        (" " if piece.spaced and index else "") + part for index, (piece, part, _) in enumerate(parts)
    )
    long = sum(piece.end - piece.begin for piece, _, _ in parts)
    return text, sum(score * (piece.end - piece.begin) for piece, _, score in parts) / long


def _padded_width(crop: NDArray[np.uint8]) -> int:
    own: int = max(TEXT_WIDTH, math.ceil(TEXT_HEIGHT * crop.shape[1] / crop.shape[0]))
    return -(-own // WIDTH_STEP) * WIDTH_STEP


def _chunks(rows: Sequence[int], width: int) -> Iterator[Sequence[int]]:
    size = max(1, PASS_WIDTH // width)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
