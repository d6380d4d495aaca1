"""Multimodal embedding by a CLIP or SigLIP in ONNX form, and by ConSE."""

from __future__ import annotations

from modelmill_backends.onnx.clip import Clip, ClipWeights
from modelmill_backends.onnx.conse import Conse, ConseWeights
from modelmill_backends.shared.embedding import MultimodalEmbedding


class ClipMultimodalEmbeddingRunner(ClipWeights, MultimodalEmbedding[Clip]):
    """Both sides of the file; length 1 in any case."""

    backend = "onnx"


class ConseMultimodalEmbeddingRunner(ConseWeights, MultimodalEmbedding[Conse]):
    """Texts and images in the sentence encoder's space. Normalised unless told otherwise.

    An image is the mean of sentences "a photo of a …": sentences of that form lie nearer to it than others.
    """

    backend = "onnx"
    name = "conse"
