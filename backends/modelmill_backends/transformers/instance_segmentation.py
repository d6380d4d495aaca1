"""Instance segmentation by Mask2Former, MaskFormer and DETR with a mask head."""

from __future__ import annotations

from typing import Any

from modelmill_backends.contract import LoadContext, Prepared
from modelmill_backends.failures import load_failed
from modelmill_backends.shared.masks import encode_rle, tight_box
from modelmill_backends.transformers.segments import FAMILIES, SegmentationRunner, instances
from modelmill_backends.transformers.weights import Loaded
from modelmill_tasks.instance_segmentation import Input, Instance, Output


class InstanceSegmentationRunner(SegmentationRunner[Input]):
    """Masks of Mask2Former and MaskFormer may overlap; DETR's do not."""

    task = "instance-segmentation"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        if self.family is None:
            kind = type(weights.model).__name__
            raise load_failed(
                context.entry, f"a {kind} does not separate instances; supported are {', '.join(FAMILIES)}"
            )

    def preprocess(self, item: Input) -> Prepared[Input]:
        return self.prepared(item, item.image)

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        assert self.family is not None  # see __init__
        size = prepared.data.size
        return Output(
            objects=[
                Instance(
                    label=self.labels[found.label],
                    score=found.score,
                    box=tight_box(found.mask),
                    rle=encode_rle(found.mask),
                    size=list(size),
                )
                for found in instances(raw, self.family, size, prepared.item.config.threshold)
            ]
        )
