"""Zero-shot classification of texts by BERT-like sentence encoders, without torch and transformers."""

from __future__ import annotations

from modelmill_backends.onnx.encoder import Encoder, OnnxEncoderRunner
from modelmill_backends.shared.encoders import ZeroShotTextRunner
from modelmill_backends.shared.zero_shot import Scoring
from modelmill_tasks.zero_shot_classification import Input


class ZeroShotClassificationRunner(OnnxEncoderRunner[Input], ZeroShotTextRunner[Encoder]):
    """Any sentence encoder that ``OnnxEncoderRunner`` loads; the option ``scale`` sharpens its scores."""

    @property
    def scoring(self) -> Scoring:
        return Scoring(self.weights.options.scale)
