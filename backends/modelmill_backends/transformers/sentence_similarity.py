"""Sentence similarity by any encoder of ``AutoModel``."""

from __future__ import annotations

from modelmill_backends.shared.encoders import SimilarityRunner
from modelmill_backends.transformers.encoder import TransformersEncoderRunner
from modelmill_backends.transformers.weights import Loaded
from modelmill_tasks.sentence_similarity import Input


class SentenceSimilarityRunner(TransformersEncoderRunner[Input], SimilarityRunner[Loaded]):
    """Any model that ``TransformersEncoderRunner`` loads."""
