"""Sentence similarity by any encoder of ``AutoModel``."""

from __future__ import annotations

from backends.encoders import SimilarityRunner
from backends.transformers.encoder import TransformersEncoderRunner
from backends.transformers.weights import Loaded
from tasks.sentence_similarity import Input


class SentenceSimilarityRunner(TransformersEncoderRunner[Input], SimilarityRunner[Loaded]):
    """Any model that ``TransformersEncoderRunner`` loads."""
