"""Text embedding by any encoder of ``AutoModel``, pooled as sentence-transformers would."""

from __future__ import annotations

from backends.encoders import EmbeddingRunner
from backends.transformers.encoder import TransformersEncoderRunner
from backends.transformers.weights import Loaded
from tasks.text_embedding import Input


class TextEmbeddingRunner(TransformersEncoderRunner[Input], EmbeddingRunner[Loaded]):
    """Any model that ``TransformersEncoderRunner`` loads."""
