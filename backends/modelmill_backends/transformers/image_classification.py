"""Image classification by any model of ``AutoModelForImageClassification``."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.shared.classes import best_classes
from modelmill_backends.shared.numerics import sigmoid, softmax
from modelmill_backends.transformers.images import ImageInputs
from modelmill_backends.transformers.weights import Loaded, load_pretrained
from modelmill_tasks.image_classification import Input, Output
from modelmill_tasks.shared.images import open_image


class ImageClassificationRunner(Runner[Input, Loaded]):
    """The labels are the model's ``id2label``; a multi-label model's scores do not sum to 1."""

    backend = "transformers"
    task = "image-classification"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._images = ImageInputs(weights)
        config = weights.model.config
        self._labels = [config.id2label[index] for index in range(config.num_labels)]
        # The library's pipeline decides in the same way.
        alone = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self._probabilities = sigmoid if alone else softmax

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        return load_pretrained(context, "AutoModelForImageClassification", images=True)

    def group_key(self, item: Input) -> Hashable:
        # Only postprocess uses top_k.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        return Prepared(item, self._images.prepare(open_image(item.image)))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        model = self.weights.model
        images = [prepared.data for prepared in batch]
        logits = self._images.run(images, lambda **inputs: model(**inputs).logits)
        return list(self._probabilities(logits))

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        return best_classes(raw, self._labels, prepared.item.config.top_k)
