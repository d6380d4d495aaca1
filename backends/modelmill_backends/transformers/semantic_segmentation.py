"""Semantic segmentation by SegFormer and similar models, and by models with one mask per query."""

from __future__ import annotations

from typing import Any

from modelmill_backends.contract import Prepared
from modelmill_backends.shared.masks import encode_rle
from modelmill_backends.transformers.segments import SegmentationRunner, semantic
from modelmill_tasks.semantic_segmentation import Input, Output, Stuff


class SemanticSegmentationRunner(SegmentationRunner[Input]):
    """Returns the labels that occur, in the order of their index in the model."""

    task = "semantic-segmentation"

    def preprocess(self, item: Input) -> Prepared[Input]:
        return self.prepared(item, item.image)

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        import numpy as np

        size = prepared.data.size
        labels = semantic(raw, self.family, size)
        return Output(
            stuffs=[
                Stuff(label=self.labels[index], rle=encode_rle(labels == index), size=list(size))
                for index in np.unique(labels).tolist()
            ]
        )
