"""Text embedding by any encoder of ``AutoModel``, pooled as in sentence-transformers."""

from __future__ import annotations

from modelmill_backends.shared.encoders import EmbeddingRunner
from modelmill_backends.transformers.encoder import TransformersEncoderRunner
from modelmill_backends.transformers.weights import Loaded
from modelmill_tasks.text_embedding import Input


class TextEmbeddingRunner(TransformersEncoderRunner[Input], EmbeddingRunner[Loaded]):
    """Any model that ``TransformersEncoderRunner`` loads."""
