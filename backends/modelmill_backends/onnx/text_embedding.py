"""Text embedding by BERT-like sentence encoders, without torch and transformers."""

from __future__ import annotations

from modelmill_backends.onnx.encoder import Encoder, OnnxEncoderRunner
from modelmill_backends.shared.encoders import EmbeddingRunner
from modelmill_tasks.text_embedding import Input


class TextEmbeddingRunner(OnnxEncoderRunner[Input], EmbeddingRunner[Encoder]):
    """Any sentence encoder that ``OnnxEncoderRunner`` loads."""
