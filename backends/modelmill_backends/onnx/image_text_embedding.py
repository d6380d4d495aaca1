"""Image-text embedding by a CLIP or SigLIP in ONNX form, and by ConSE."""

from __future__ import annotations

from modelmill_backends.onnx.clip import Clip, ClipWeights
from modelmill_backends.onnx.conse import Conse, ConseWeights
from modelmill_backends.shared.embedding import ImageTextEmbedding


class ClipImageTextEmbeddingRunner(ClipWeights, ImageTextEmbedding[Clip]):
    """Both encoders of the file. Vectors always have length 1."""

    backend = "onnx"


class ConseImageTextEmbeddingRunner(ConseWeights, ImageTextEmbedding[Conse]):
    """Image and text in the sentence encoder's space. Normalised unless the caller asks otherwise."""

    backend = "onnx"
    name = "conse"
