"""Zero-shot classification by CLIP, SigLIP and SigLIP 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import LoadContext
from modelmill_backends.failures import load_failed
from modelmill_backends.shared.losses import Read
from modelmill_backends.shared.zero_shot import Scoring, ZeroShotRunner
from modelmill_backends.transformers.dual_encoder import EncoderWeights, VisionEncoder, need_dual_encoder

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


class ZeroShotImageClassificationRunner(EncoderWeights, ZeroShotRunner[VisionEncoder]):
    """Any model with ``get_image_features``, ``get_text_features`` and ``logit_scale``."""

    backend = "transformers"
    # The template of the library's own pipeline.
    template = "This is a photo of {}."

    def __init__(self, weights: VisionEncoder, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._encoder = need_dual_encoder(weights, context)
        model = weights.model
        if not hasattr(model, "logit_scale"):
            kind = type(model).__name__
            raise load_failed(context.entry, f"a {kind} does not compare images with texts: no logit_scale")
        bias = getattr(model, "logit_bias", None)
        self._scoring = Scoring(
            scale=math.exp(float(model.logit_scale)),
            bias=0.0 if bias is None else float(bias),
            sigmoid=self._encoder.is_siglip,
        )

    @property
    def scoring(self) -> Scoring:
        return self._scoring

    def pixels(self, image: Image) -> Any:
        return self._encoder.prepare_image(image)

    def encode_images(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        return self._encoder.encode_images(pixels)

    def encode_texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        return self._encoder.encode_texts([self._encoder.prepare_text(text) for text in sentences])

    def read(self, sentence: str) -> Read:
        return self._encoder.read(sentence)
