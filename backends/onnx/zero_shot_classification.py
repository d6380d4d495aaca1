"""Zero-shot classification of texts by BERT-like sentence encoders, without torch and transformers."""

from __future__ import annotations

from backends.encoders import ZeroShotTextRunner
from backends.onnx.encoder import Encoder, OnnxEncoderRunner
from backends.zero_shot import Scoring
from tasks.zero_shot_classification import Input


class ZeroShotClassificationRunner(OnnxEncoderRunner[Input], ZeroShotTextRunner[Encoder]):
    """Any sentence encoder that ``OnnxEncoderRunner`` loads; the entry's option ``scale`` sharpens it."""

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.weights.options.scale)
