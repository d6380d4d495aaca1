"""RapidOCR's three networks: they find text, tell whether it is upside down, and read it.

RapidOCR runs them on one image at a time. Here the texts of all images of a batch share passes, and the
result of one text does not depend on the others. RapidOCR's own functions interpret the networks' outputs,
cut texts out and turn scores into characters. Source: PaddleOCR, PP-OCRv4 to v6.
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
from modelmill_backends.shared.image_settings import check_aspect

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

# RapidOCR's own settings (its config.yaml).
MIN_SIDE, MAX_SIDE = 30, 2000
DETECTION_SIDE = 736
MAX_ASPECT = 8
DETECTION: dict[str, Any] = {
    "thresh": 0.3,
    "box_thresh": 0.5,
    "max_candidates": 1000,
    "unclip_ratio": 1.6,
    "use_dilation": True,
    "score_mode": "fast",
}
TEXT_HEIGHT, TEXT_WIDTH = 48, 320
TURN_WIDTH, TURN_THRESHOLD = 192, 0.9

WIDTH_STEP = 64
"""Texts are padded to a multiple of this: the padding depends on the text only, and many share a width."""
PASS_WIDTH = 8192
"""Total width of the texts of one pass, in pixels: their scores for 18,710 characters take 80 MB."""


@dataclass(frozen=True, slots=True)
class Page:
    """An image, prepared for detection."""

    pixels: NDArray[np.uint8]
    """``[height, width, 3]``, blue first, scaled and padded. Texts are cut out of it."""
    detection: NDArray[np.uint8]
    """The same image at the size for detection."""
    scale: tuple[float, float]
    """Pixels of the original per pixel of ``pixels``, horizontally and vertically."""
    padding: tuple[int, int]
    """Number of padding columns and rows before the image in ``pixels``."""


@dataclass(frozen=True, slots=True)
class Found:
    """A text: its quadrilateral ``[4, 2]`` in pixels of the original, its characters and its score."""

    corners: NDArray[np.float64]
    text: str
    score: float


class Networks:
    """The loaded networks.

    Args:
        detector: Session that marks text.
        turner: Session that detects text that is upside down; None leaves all texts unchanged.
        reader: Session that reads a line of text; its metadata list its characters.
    """

    def __init__(self, detector: Any, turner: Any | None, reader: Any) -> None:
        from rapidocr.ch_ppocr_det.utils import DBPostProcess, DetPreProcess
        from rapidocr.ch_ppocr_rec.utils import CTCLabelDecode

        self._detector, self._turner, self._reader = detector, turner, reader
        self._sizing = DetPreProcess(DETECTION_SIDE, "min")
        self._boxes = DBPostProcess(**DETECTION)
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

    def page(self, image: Image) -> Page:
        """An RGB image for ``read``. Runs in threads.

        Raises:
            MediaError: ``invalid_media``: the image is far longer than wide, or wider than high.
        """
        import numpy as np
        from rapidocr.utils.process_img import resize_image_within_bounds

        check_aspect(image)
        blue_first = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])
        pixels, _, _ = resize_image_within_bounds(blue_first, MIN_SIDE, MAX_SIDE)
        # The function's own ratios are not used: after two steps it returns those of the last step only.
        scale = image.width / pixels.shape[1], image.height / pixels.shape[0]
        padded, padding = _less_narrow(pixels)
        detection: Any = self._sizing.resize(padded)
        return Page(padded, detection, scale, padding)

    def read(self, pages: Sequence[Page]) -> list[list[Found]]:
        """The texts of each page, in any order."""
        quads = [self._detect(page) for page in pages]
        crops = [crop for page, found in zip(pages, quads, strict=True) for crop in _cut(page, found)]
        read = iter(self._recognise(self._upright(crops)))
        return [
            [Found(_in_original(page, quad), *next(read)) for quad in found]
            for page, found in zip(pages, quads, strict=True)
        ]

    def _detect(self, page: Page) -> NDArray[np.float32]:
        """Quadrilaterals ``[n, 4, 2]`` in ``page.pixels``, clockwise from the upper left."""
        import numpy as np

        # Pages differ in size, so each has its own pass.
        (marked,) = _run(self._detector, _normalised(page.detection)[None])
        height, width = page.pixels.shape[:2]
        boxes, _ = self._boxes(marked, (height, width))
        return np.asarray(boxes, dtype=np.float32).reshape(-1, 4, 2)

    def _upright(self, crops: Sequence[NDArray[np.uint8]]) -> list[NDArray[np.uint8]]:
        import numpy as np

        upright = list(crops)
        if self._turner is None:
            return upright
        for rows in _chunks(range(len(crops)), TURN_WIDTH):
            (scores,) = _run(self._turner, np.stack([_line(crops[row], TURN_WIDTH) for row in rows]))
            for row, (_, turned) in zip(rows, scores, strict=True):
                if turned > TURN_THRESHOLD:
                    upright[row] = np.ascontiguousarray(crops[row][::-1, ::-1])
        return upright

    def _recognise(self, crops: Sequence[NDArray[np.uint8]]) -> list[tuple[str, float]]:
        import numpy as np

        widths: dict[int, list[int]] = {}
        for row, crop in enumerate(crops):
            widths.setdefault(_padded_width(crop), []).append(row)
        read: list[tuple[str, float]] = [("", 0.0)] * len(crops)
        for width, members in sorted(widths.items()):
            for rows in _chunks(members, width):
                (scores,) = _run(self._reader, np.stack([_line(crops[row], width) for row in rows]))
                for row, (text, score) in zip(rows, self._characters(scores)[0], strict=True):
                    read[row] = text, float(score)
        return read


def _run(session: Any, values: NDArray[np.float32]) -> Any:
    return session.run(None, {session.get_inputs()[0].name: values})


def _normalised(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Bytes ``[height, width, 3]`` as numbers ``[3, height, width]`` from -1 to 1."""
    import numpy as np

    values = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.float32)
    values /= 127.5
    values -= 1
    return values


def _line(crop: NDArray[np.uint8], width: int) -> NDArray[np.float32]:
    """A text scaled to ``TEXT_HEIGHT``, at the left of ``width`` columns; the rest are zeros."""
    import cv2
    import numpy as np

    own = min(width, math.ceil(TEXT_HEIGHT * crop.shape[1] / crop.shape[0]))
    values = np.zeros((3, TEXT_HEIGHT, width), dtype=np.float32)
    values[:, :, :own] = _normalised(np.asarray(cv2.resize(crop, (own, TEXT_HEIGHT))))
    return values


def _padded_width(crop: NDArray[np.uint8]) -> int:
    own: int = max(TEXT_WIDTH, math.ceil(TEXT_HEIGHT * crop.shape[1] / crop.shape[0]))
    return -(-own // WIDTH_STEP) * WIDTH_STEP


def _chunks(rows: Sequence[int], width: int) -> Iterator[Sequence[int]]:
    size = max(1, PASS_WIDTH // width)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _less_narrow(pixels: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[int, int]]:
    """Adds black to a narrow strip: above and below as RapidOCR does, or at the left and right.

    Detection scales the short side up, so a narrow strip would become huge.
    """
    import numpy as np

    height, width = pixels.shape[:2]

    def padding(short: int, long: int) -> int:
        narrow = short <= MIN_SIDE or long > MAX_ASPECT * short
        return abs(max(long // MAX_ASPECT, MIN_SIDE) * 2 - short) // 2 if narrow else 0

    left, top = (padding(width, height), 0) if width < height else (0, padding(height, width))
    if not left and not top:
        return pixels, (0, 0)
    return np.pad(pixels, ((top, top), (left, left), (0, 0))), (left, top)


def _cut(page: Page, quads: NDArray[np.float32]) -> list[NDArray[np.uint8]]:
    from rapidocr.utils.process_img import get_rotate_crop_image

    # The function also turns text that runs from top to bottom.
    return [get_rotate_crop_image(page.pixels, quad.copy()) for quad in quads]


def _in_original(page: Page, quad: NDArray[np.float32]) -> NDArray[np.float64]:
    import numpy as np

    height, width = page.pixels.shape[:2]
    bounds = np.array([width, height]) - 2 * np.array(page.padding)
    corners: NDArray[np.float64] = np.clip(quad - page.padding, 0, bounds) * page.scale
    return corners
