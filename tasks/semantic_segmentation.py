"""Semantic segmentation: what does each pixel of the image belong to: sky, road, cat?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from tasks.contract import Batched, Example, Task, TaskConfig, TaskInput, TaskOutput
from tasks.examples import CAT
from tasks.fields import Part
from tasks.media import Image
from tasks.regions import Rle, Size


class Config(TaskConfig):
    """This task has nothing to tune."""


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="What tunes the model.")


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
    summary="What does each pixel of the image belong to, among the labels that the model knows?",
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
