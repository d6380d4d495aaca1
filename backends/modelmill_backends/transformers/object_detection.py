"""Object detection by any model of ``AutoModelForObjectDetection``: DETR, RT-DETR, YOLOS and similar."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.transformers.regions import (
    RegionInputs,
    as_outputs,
    detected,
    labels_of,
    load_for_images,
)
from modelmill_backends.transformers.weights import Loaded
from modelmill_tasks.object_detection import Input, Output


class ObjectDetectionRunner(Runner[Input, Loaded]):
    """The labels are the model's ``id2label``. Images of one shape share a pass."""

    backend = "transformers"
    task = "object-detection"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._images = RegionInputs(weights, ("logits", "pred_boxes"))
        self.labels = labels_of(weights.model)
        """The labels that it can find, by the model's index."""

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        method = "post_process_object_detection"
        lack = "read boxes from the model's answer"
        return load_for_images(context, "AutoModelForObjectDetection", method, lack)

    def group_key(self, item: Input) -> Hashable:
        # Only postprocess uses threshold and top_k.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        return Prepared(item, self._images.prepare(item.image))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        return self._images.run([prepared.data for prepared in batch])

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        config, image = prepared.item.config, prepared.data
        (found,) = self.weights.image_processor.post_process_object_detection(
            as_outputs(raw), threshold=config.threshold, target_sizes=[image.size]
        )
        scores, boxes = found["scores"].tolist(), found["boxes"].tolist()
        labels = [self.labels[index] for index in found["labels"].tolist()]
        return Output(objects=detected(zip(scores, labels, boxes, strict=True), image, config.top_k))
