"""Image classification by EfficientNet-Lite0."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.onnx.imagenet import Classifier, labels, pixels
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.shared.classes import best_classes
from modelmill_tasks.image_classification import Input, Output
from modelmill_tasks.shared.images import open_image


class EfficientNetLiteRunner(Runner[Input, Classifier]):
    """Knows ImageNet's 1000 classes. The scores of all classes sum to 1."""

    backend = "onnx"
    task = "image-classification"
    name = "efficientnet-lite0"

    @classmethod
    def load(cls, context: LoadContext) -> Classifier:
        read_options(context.entry, RunnerOptions)
        return Classifier.load(context)

    def group_key(self, item: Input) -> Hashable:
        # Only postprocess uses top_k.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        return Prepared(item, pixels(open_image(item.image)))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        return list(self.weights.probabilities([prepared.data for prepared in batch]))

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        return best_classes(raw, labels(), prepared.item.config.top_k)
