"""Multimodal embedding by a CLIP or SigLIP in ONNX form, and by ConSE."""

from __future__ import annotations

from modelmill_backends.onnx.clip import Clip, ClipWeights
from modelmill_backends.onnx.conse import Conse, ConseWeights
from modelmill_backends.shared.embedding import MultimodalEmbedding


class ClipMultimodalEmbeddingRunner(ClipWeights, MultimodalEmbedding[Clip]):
    """Both encoders of the file. Vectors always have length 1."""

    backend = "onnx"


class ConseMultimodalEmbeddingRunner(ConseWeights, MultimodalEmbedding[Conse]):
    """Texts and images in the sentence encoder's space. Normalised unless the caller asks otherwise.

    An image's vector is the mean of sentences "a photo of a …", so sentences of this form are closer to it.
    """

    backend = "onnx"
    name = "conse"
