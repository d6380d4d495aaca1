"""Zero-shot image classification: which of the classes that you name does the image show?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import Classes, ZeroShotConfig
from modelmill_tasks.shared.images import Image


class Config(ZeroShotConfig):
    """Options of the model."""


class Input(TaskInput):
    image: Annotated[Image, Batched]
    classes: Classes = Field(description="The classes to choose from.")
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    probabilities: list[float] = Field(description="One per class, 0 to 1, in the caller's order.")


TASK = Task(
    name="zero-shot-image-classification",
    group=TaskGroup.IMAGES,
    summary="Which of the classes that you name does the image show?",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "classes": ["cat", "dog"], "config": {}},
        output={"probabilities": [0.9987, 0.0013]},
        model="conse-lite0",
    ),
)
