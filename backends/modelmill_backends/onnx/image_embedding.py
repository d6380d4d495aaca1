"""Image embedding by EfficientNet-Lite0's features, by a CLIP or SigLIP in ONNX form, and by ConSE."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from modelmill_backends.contract import Prepared, Runner
from modelmill_backends.onnx.clip import Clip, ClipWeights
from modelmill_backends.onnx.conse import Conse, ConseWeights
from modelmill_backends.onnx.image_classification import EfficientNetLiteRunner
from modelmill_backends.onnx.imagenet import Classifier, pixels
from modelmill_backends.shared.embedding import ImageEmbedding
from modelmill_backends.shared.numerics import normalise
from modelmill_tasks.image_embedding import Input, Output
from modelmill_tasks.shared.images import open_image


class ClipImageEmbeddingRunner(ClipWeights, ImageEmbedding[Clip]):
    """The image encoder of the file. Vectors always have length 1."""

    backend = "onnx"


class ConseImageEmbeddingRunner(ConseWeights, ImageEmbedding[Conse]):
    """Vectors in the sentence encoder's space: they depend on what the image shows, not on its look."""

    backend = "onnx"
    name = "conse"


class EfficientNetLiteEmbeddingRunner(Runner[Input, Classifier]):
    """The 1280 features from which the last layer computes the classes. Not normalised unless asked.

    They are never negative, so the cosine of two images is between 0 and 1.
    """

    backend = "onnx"
    task = "image-embedding"
    name = "efficientnet-lite0"
    # The classifier's own load, so that an entry with both tasks loads one network.
    load = EfficientNetLiteRunner.load

    def group_key(self, item: Input) -> Hashable:
        # Only postprocess uses normalize.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        return Prepared(item, pixels(open_image(item.image)))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        import numpy as np

        images = np.stack([prepared.data for prepared in batch])
        (features,) = self.weights.session.run(["features"], {"pixels": images})
        return list(features)

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        return Output(embedding=(normalise(raw) if prepared.item.config.normalize else raw).tolist())
