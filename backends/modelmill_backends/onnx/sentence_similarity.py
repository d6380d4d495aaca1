"""Sentence similarity by BERT-like sentence encoders, without torch and transformers."""

from __future__ import annotations

from modelmill_backends.onnx.encoder import Encoder, OnnxEncoderRunner
from modelmill_backends.shared.encoders import SimilarityRunner
from modelmill_tasks.sentence_similarity import Input


class SentenceSimilarityRunner(OnnxEncoderRunner[Input], SimilarityRunner[Encoder]):
    """Any sentence encoder that ``OnnxEncoderRunner`` loads."""
