"""Instance segmentation: which objects does the image show, and which pixels belong to each?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import Part, Score
from modelmill_tasks.shared.images import Image
from modelmill_tasks.shared.regions import PixelBox, Rle, Size, Threshold


class Config(TaskConfig):
    threshold: Threshold = Field(0.5, description="Objects with at least this score are returned.")


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Instance(Part):
    """One object, with its pixels. The masks of different objects may overlap."""

    label: str
    score: Score
    box: PixelBox = Field(description="Tight around the mask, in whole pixels.")
    rle: Rle
    size: Size


class Output(TaskOutput):
    objects: list[Instance] = Field(description="Best first; empty if the model found none.")


TASK = Task(
    name="instance-segmentation",
    group=TaskGroup.IMAGES,
    summary="Which objects does the image show, and which pixels belong to each?",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "config": {"threshold": 0.8}},
        output={
            "objects": [
                {
                    "label": "cat",
                    "score": 0.9873,
                    "box": {"left": 106, "top": 20, "width": 3, "height": 92},
                    "rle": "11892,92,28,84,46,66,336",
                    "size": [112, 112],
                }
            ]
        },
        model="mask2former-swin-tiny-coco",
        real=False,
    ),
)
