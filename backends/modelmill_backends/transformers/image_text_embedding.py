"""Image-text embedding by CLIP, SigLIP and similar models."""

from __future__ import annotations

from modelmill_backends.contract import LoadContext
from modelmill_backends.shared.embedding import ImageTextEmbedding
from modelmill_backends.transformers.dual_encoder import DualEncoder, EncoderWeights, need_dual_encoder


class ImageTextEmbeddingRunner(EncoderWeights, ImageTextEmbedding[DualEncoder]):
    """Any model with ``get_image_features`` and ``get_text_features``. Normalises by default."""

    backend = "transformers"

    def __init__(self, weights: DualEncoder, context: LoadContext) -> None:
        super().__init__(need_dual_encoder(weights, context), context)
