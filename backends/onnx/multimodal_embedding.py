"""Multimodal embedding by a CLIP or SigLIP in ONNX form, and by ConSE."""

from __future__ import annotations

from backends.embedding import MultimodalEmbedding
from backends.onnx.clip import Clip, ClipWeights
from backends.onnx.conse import Conse, ConseWeights


class ClipMultimodalEmbeddingRunner(ClipWeights, MultimodalEmbedding[Clip]):
    """Both sides of the file; length 1 in any case."""

    backend = "onnx"


class ConseMultimodalEmbeddingRunner(ConseWeights, MultimodalEmbedding[Conse]):
    """Texts and images in the sentence encoder's space. Normalised unless told otherwise.

    An image is the mean of sentences "a photo of a …": sentences of that form lie nearer to it than others.
    """

    backend = "onnx"
    name = "conse"
