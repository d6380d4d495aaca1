"""Semantic segmentation: which label does each pixel have, such as sky, road or cat?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import Part
from modelmill_tasks.shared.images import Image
from modelmill_tasks.shared.regions import Rle, Size


class Config(TaskConfig):
    """This task has nothing to tune."""


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Stuff(Part):
    """All pixels of one label."""

    label: str
    rle: Rle
    size: Size


class Output(TaskOutput):
    stuffs: list[Stuff] = Field(
        description="The labels that occur, in the model's order of labels. No pixel is in two of them."
    )


TASK = Task(
    name="semantic-segmentation",
    group=TaskGroup.IMAGES,
    summary="Which label does each pixel of the image have, among those that the model knows?",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "config": {}},
        output={
            "stuffs": [
                {"label": "floor", "rle": "0,11892,92,28,84,46,66,336", "size": [112, 112]},
                {"label": "animal", "rle": "11892,92,28,84,46,66,336", "size": [112, 112]},
            ]
        },
        model="segformer-b0-ade",
        real=False,
    ),
)
