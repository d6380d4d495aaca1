"""Zero-shot classification by CLIP, SigLIP and SigLIP 2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from backends.contract import LoadContext
from backends.failures import load_failed
from backends.transformers.images import ImageInputs
from backends.transformers.weights import Loaded, load_pretrained
from backends.zero_shot import Scoring, ZeroShotRunner

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


class ZeroShotImageClassificationRunner(ZeroShotRunner[Loaded]):
    """Any model with ``get_image_features``, ``get_text_features`` and ``logit_scale``."""

    backend = "transformers"
    # The template of the library's own pipeline.
    template = "This is a photo of {}."

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        model = weights.model
        self._images = ImageInputs(weights)
        self._siglip = "siglip" in model.config.model_type
        bias = getattr(model, "logit_bias", None)
        self._scoring = Scoring(
            scale=math.exp(float(model.logit_scale)),
            bias=0.0 if bias is None else float(bias),
            sigmoid=self._siglip,
        )

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        loaded = load_pretrained(context, "AutoModel", tokenizer=True, images=True)
        for name in ("get_image_features", "get_text_features", "logit_scale"):
            if not hasattr(loaded.model, name):
                kind = type(loaded.model).__name__
                loaded.close()
                raise load_failed(context.entry, f"a {kind} does not compare images with texts: no {name}")
        return loaded

    @property
    def scoring(self) -> Scoring:
        return self._scoring

    def pixels(self, image: Image) -> Any:
        return self._images.prepare(image)

    def encode_images(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        model = self.weights.model
        return self._images.run(pixels, lambda **inputs: _tensor(model.get_image_features(**inputs)))

    def encode_texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        import torch

        window = self.weights.model.config.text_config.max_position_embeddings
        tokens = self.weights.tokenizer(
            list(sentences),
            # SigLIP was trained on padded texts and sees the padding.
            padding="max_length" if self._siglip else True,
            truncation=True,
            max_length=window,
            return_tensors="np",
        )
        with torch.inference_mode():
            features = self.weights.model.get_text_features(**self.weights.to_device(**tokens))
            vectors: NDArray[np.float32] = _tensor(features).float().cpu().numpy()
        return vectors


def _tensor(features: Any) -> Any:
    # Since version 5 of the library the features come inside of an output object.
    return getattr(features, "pooler_output", features)
