"""Sentence similarity by BERT-like sentence encoders, without torch and transformers."""

from __future__ import annotations

from backends.encoders import SimilarityRunner
from backends.onnx.encoder import Encoder, OnnxEncoderRunner
from tasks.sentence_similarity import Input


class SentenceSimilarityRunner(OnnxEncoderRunner[Input], SimilarityRunner[Encoder]):
    """Any sentence encoder that ``OnnxEncoderRunner`` loads."""
