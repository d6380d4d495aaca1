"""Semantic segmentation by SegFormer and its like, and by models with one mask a query."""

from __future__ import annotations

from typing import Any

from backends.contract import Prepared
from backends.masks import encode_rle
from backends.transformers.segments import SegmentationRunner, semantic
from tasks.semantic_segmentation import Input, Output, Stuff


class SemanticSegmentationRunner(SegmentationRunner[Input]):
    """The labels that occur, by their index in the model."""

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
