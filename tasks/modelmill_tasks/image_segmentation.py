"""Image segmentation: the image cut into labelled segments, each with its mask as a picture."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import Label
from modelmill_tasks.shared.images import Image
from modelmill_tasks.shared.regions import PngMask, Threshold


class Subtask(StrEnum):
    """What counts as a segment."""

    PANOPTIC = "panoptic"
    """Every pixel is in at most one segment; countable things have one segment each."""
    INSTANCE = "instance"
    """Objects only, each by itself; their masks may overlap."""
    SEMANTIC = "semantic"
    """One segment per label, without scores."""


class Config(TaskConfig):
    threshold: Threshold = Field(
        0.9,
        description="Segments with a lower score are left out. Semantic segments have no scores, so "
        "all stay.",
    )
    subtask: Subtask | None = Field(
        None,
        description="panoptic: all of the image, things and background. instance: objects only, each by "
        "itself; masks may overlap. semantic: one segment per label, without scores. "
        "If it is not set, the first of these that the model can do.",
    )


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Segment(Label):
    """A part of the image."""

    mask: PngMask


class Output(TaskOutput):
    segments: list[Segment] = Field(
        description="Best first; semantic segments in the model's order of labels."
    )


TASK = Task(
    name="image-segmentation",
    group=TaskGroup.IMAGES,
    summary="The image cut into labelled segments, each with its mask.",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "config": {"subtask": "panoptic"}},
        output={
            "segments": [
                {
                    "label": "cat",
                    "score": 0.9934,
                    "mask": "data:image/png;base64,"
                    "iVBORw0KGgoAAAANSUhEUgAAAHAAAABwCAAAAADji6uXAAAATElEQVR42u3PwQkA"
                    "QAgDQb3+e9YePBCE2X8YEiFJknS//BnXYPO2HwKBQCAQCAQCgUAgEAgEAoFAIBAIBAKBQCAQCAQCgUAgEAjcrAEDWgG3C1U/"
                    "ZgAAAABJRU5ErkJggg==",
                }
            ]
        },
        model="mask2former-swin-tiny-coco",
        real=False,
    ),
)
