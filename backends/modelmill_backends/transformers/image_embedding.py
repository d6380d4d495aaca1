"""Image embedding by any model of ``AutoModel`` that takes images, and text embedding in the same space."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.shared.embedding import ImageEmbedding
from modelmill_backends.shared.numerics import normalise
from modelmill_backends.shared.sentences import SentenceConfig
from modelmill_backends.transformers.dual_encoder import (
    DualEncoder,
    EncoderWeights,
    VisionEncoder,
    need_dual_encoder,
)
from modelmill_tasks.text_embedding import Input, Output


class ImageEmbeddingRunner(EncoderWeights, ImageEmbedding[VisionEncoder]):
    """Dual encoders normalise unless the caller asks otherwise; vision models (ViT, DINOv2) do not."""

    backend = "transformers"

    def __init__(self, weights: VisionEncoder, context: LoadContext) -> None:
        super().__init__(weights, context)
        if not isinstance(weights, DualEncoder) and weights.model.main_input_name != "pixel_values":
            raise load_failed(context.entry, f"a {type(weights.model).__name__} does not take images")


class DualEncoderTextEmbeddingRunner(EncoderWeights, Runner[Input, VisionEncoder]):
    """The text encoder of a dual encoder. It has no prompts. Normalises unless the caller asks otherwise."""

    backend = "transformers"
    task = "text-embedding"
    name = "dual-encoder"

    def __init__(self, weights: VisionEncoder, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._encoder = need_dual_encoder(weights, context)

    def group_key(self, item: Input) -> Hashable:
        # Only preprocess uses the prompt, and only postprocess uses normalize.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        text = SentenceConfig().with_prompt(item.text, item.config.prompt_name)
        tokens = self._encoder.prepare_text(text)
        return Prepared(item, tokens, cost=len(tokens["input_ids"]) / self._encoder.window)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        return list(self._encoder.encode_texts([prepared.data for prepared in batch]))

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        return Output(embedding=(raw if prepared.item.config.normalize is False else normalise(raw)).tolist())
