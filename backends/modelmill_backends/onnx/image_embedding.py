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
from modelmill_tasks.shared.media import open_image


class ClipImageEmbeddingRunner(ClipWeights, ImageEmbedding[Clip]):
    """The image's side of the file; length 1 in any case."""

    backend = "onnx"


class ConseImageEmbeddingRunner(ConseWeights, ImageEmbedding[Conse]):
    """In the sentence encoder's space: what the image shows counts, and not how it looks."""

    backend = "onnx"
    name = "conse"


class EfficientNetLiteEmbeddingRunner(Runner[Input, Classifier]):
    """The 1280 features that the last layer makes its classes of. Not normalised unless asked.

    They are non-negative, so that cosines of two images lie between 0 and 1.
    """

    backend = "onnx"
    task = "image-embedding"
    name = "efficientnet-lite0"
    # The classifier's own, so that one entry answers both with one network.
    load = EfficientNetLiteRunner.load

    def group_key(self, item: Input) -> Hashable:
        # normalize concerns postprocess only.
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
