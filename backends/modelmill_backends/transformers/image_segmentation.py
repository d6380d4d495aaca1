"""Image segmentation: panoptic, instance or semantic, depending on the model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from modelmill.errors import invalid_field
from modelmill_backends.contract import Prepared
from modelmill_backends.shared.masks import png_mask
from modelmill_backends.transformers.segments import Found, SegmentationRunner, instances, panoptic, semantic
from modelmill_tasks.image_segmentation import Input, Output, Segment, Subtask


class ImageSegmentationRunner(SegmentationRunner[Input]):
    """Default subtask: the first of panoptic, instance and semantic that the model can do."""

    task = "image-segmentation"

    def preprocess(self, item: Input) -> Prepared[Input]:
        subtask = item.config.subtask
        if self.family is None and subtask not in (None, Subtask.SEMANTIC):
            message = (
                f"model {self.entry.name} does semantic segmentation only; leave subtask out or set semantic"
            )
            raise invalid_field("config.subtask", message)
        return self.prepared(item, item.image)

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        config, size = prepared.item.config, prepared.data.size
        if self.family is None or config.subtask is Subtask.SEMANTIC:
            return Output(segments=self._stuff(raw, size))
        find = instances if config.subtask is Subtask.INSTANCE else panoptic
        return Output(segments=self._things(find(raw, self.family, size, config.threshold)))

    def _things(self, found: Iterable[Found]) -> list[Segment]:
        return [
            Segment(label=self.labels[one.label], score=one.score, mask=png_mask(one.mask)) for one in found
        ]

    def _stuff(self, raw: Any, size: tuple[int, int]) -> list[Segment]:
        import numpy as np

        labels = semantic(raw, self.family, size)
        return [
            Segment(label=self.labels[index], score=None, mask=png_mask(labels == index))
            for index in np.unique(labels).tolist()
        ]
