"""Optical character recognition by RapidOCR's networks."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from pydantic import Field

from modelmill.errors import invalid_field
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.rapidocr.networks import MAX_SIDE, Found, Networks
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

    ``Prepared.cost`` is the size of the image for detection, as a share of the largest size.
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
        page = self.weights.page(open_image(item.image))
        return Prepared(item, page, cost=min(1.0, page.detection.size / (3 * MAX_SIDE**2)))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        return self.weights.read([prepared.data for prepared in batch])

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[Found]) -> Output:
        sure = [found for found in raw if found.score >= self._options.min_score and found.text.strip()]
        lines = in_reading_order([_piece(found) for found in sure])
        return Output(
            text=text_of(lines),
            objects=[
                TextObject(
                    text=piece.text,
                    score=piece.score,
                    box=Box(
                        left=piece.left,
                        top=piece.top,
                        width=piece.right - piece.left,
                        height=piece.bottom - piece.top,
                    ),
                )
                for line in lines
                for piece in line
            ],
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


def _piece(found: Found) -> Piece:
    (left, top), (right, bottom) = found.corners.min(axis=0).tolist(), found.corners.max(axis=0).tolist()
    return Piece(found.text.strip(), found.score, left, top, right, bottom)
