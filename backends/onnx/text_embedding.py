"""Text embedding by BERT-like sentence encoders, without torch and transformers."""

from __future__ import annotations

from backends.encoders import EmbeddingRunner
from backends.onnx.encoder import Encoder, OnnxEncoderRunner
from tasks.text_embedding import Input


class TextEmbeddingRunner(OnnxEncoderRunner[Input], EmbeddingRunner[Encoder]):
    """Any sentence encoder that ``OnnxEncoderRunner`` loads."""
