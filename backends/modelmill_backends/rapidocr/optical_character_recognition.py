"""Optical character recognition by RapidOCR's networks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from pydantic import Field

from modelmill.errors import invalid_field
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.rapidocr.directions import turned_box
from modelmill_backends.rapidocr.networks import Found, Networks, PageText
from modelmill_backends.rapidocr.pages import FIRST_AREA, page_of
from modelmill_backends.rapidocr.reading import Piece, in_reading_order, text_of
from modelmill_backends.source import locate
from modelmill_tasks.optical_character_recognition import Input, Output, TextObject
from modelmill_tasks.shared.images import open_image
from modelmill_tasks.shared.regions import Box

_CODES = (
    "zh en ja af az bs ca cs cy da de es et eu fi fr ga gl hr hu id is it ku la lb lt lv mi ms mt nl no oc "
    "pl pt qu rm ro sk sl sq sr-latn sv sw tl tr uz vi"
)
LANGUAGES = tuple(_CODES.split())
"""Languages that PP-OCRv6 reads: ``ppocrv6_langs`` in RapidOCR's default_models.yaml, as ISO 639-1."""


class OpticalCharacterRecognitionOptions(RunnerOptions):
    """Options of a catalogue entry. Files are in the source's folder."""

    detector: str = "PP-OCRv6_det_small.onnx"
    recognizer: str = "PP-OCRv6_rec_small.onnx"
    turner: str | None = Field(
        "ch_ppocr_mobile_v2.0_cls_mobile.onnx",
        description="Network that finds text upside down; null: none.",
    )
    languages: tuple[str, ...] = Field(LANGUAGES, description="Languages that callers may ask for.")
    min_score: float = Field(0.5, ge=0, le=1, description="Texts with a lower score are left out.")


class OpticalCharacterRecognitionRunner(Runner[Input, Networks]):
    """The recognizer reads all its languages at once, so ``languages`` is checked but changes nothing.

    ``Prepared.cost`` is the number of pixels that are searched for text, in units of about 4 million.
    """

    backend = "rapidocr"
    task = "optical-character-recognition"

    def __init__(self, weights: Networks, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._options = read_options(context.entry, OpticalCharacterRecognitionOptions)

    @classmethod
    def load(cls, context: LoadContext) -> Networks:
        options = read_options(context.entry, OpticalCharacterRecognitionOptions)
        folder = locate(context.entry, ("*.onnx",))
        return Networks.open(context, folder, (options.detector, options.turner, options.recognizer))

    def group_key(self, item: Input) -> Hashable:
        # Only preprocess uses languages.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        for language in item.config.languages or ():
            self._check(language)
        page = page_of(open_image(item.image))
        return Prepared(item, page, cost=page.area / FIRST_AREA)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        return self.weights.read([prepared.data for prepared in batch])

    def postprocess(self, prepared: Prepared[Input], raw: PageText) -> Output:
        sure = [found for found in raw.found if found.score >= self._options.min_score and found.text.strip()]
        height, width = prepared.data.pixels.shape[:2]
        boxes = [_box(found) for found in sure]
        pieces = [
            Piece(found.text.strip(), found.score, *turned_box(box, (width, height), raw.turn), index)
            for index, (found, box) in enumerate(zip(sure, boxes, strict=True))
        ]
        lines = in_reading_order(pieces)
        return Output(
            text=text_of(lines),
            objects=[_object(piece, boxes[piece.index]) for line in lines for piece in line],
        )

    def _check(self, language: str) -> None:
        known = self._options.languages
        code = language.lower().replace("_", "-")
        # A region or script does not matter, except for Cyrillic, which the model cannot read.
        if code in known or (code.partition("-")[0] in known and "cyrl" not in code):
            return
        raise invalid_field(
            "config.languages", f"the model does not read {language!r}; it reads: {', '.join(known)}"
        )


def _box(found: Found) -> tuple[float, float, float, float]:
    (left, top), (right, bottom) = found.corners.min(axis=0).tolist(), found.corners.max(axis=0).tolist()
    return left, top, right, bottom


def _object(piece: Piece, box: tuple[float, float, float, float]) -> TextObject:
    left, top, right, bottom = box
    place = Box(left=left, top=top, width=right - left, height=bottom - top)
    return TextObject(text=piece.text, score=piece.score, box=place)
