"""Zero-shot image classification: which of the caller's own classes does the image show?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, StringConstraints, field_validator

from tasks.contract import Batched, Example, Task, TaskConfig, TaskInput, TaskOutput
from tasks.examples import CAT
from tasks.media import Image

MAX_CLASSES = 1000

ClassName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]


class Config(TaskConfig):
    hypothesis_template: str | None = Field(
        None,
        max_length=500,
        description="Sentence around each class, with {} for its name; the model's own when not set.",
        examples=["a photo of a {}"],
    )
    multi_label: bool | None = Field(
        None,
        description="false: the classes exclude each other and sum to 1. true: each is judged by itself. "
        "The model's own way when not set.",
    )

    @field_validator("hypothesis_template")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        if value is not None and value.count("{}") != 1:
            raise ValueError("must contain {} exactly once, where the class goes")
        return value


class Input(TaskInput):
    image: Annotated[Image, Batched]
    classes: Annotated[list[ClassName], Field(min_length=1, max_length=MAX_CLASSES)] = Field(
        description="The classes to choose from."
    )
    config: Config = Field(default_factory=Config, description="What tunes the model.")


class Output(TaskOutput):
    probabilities: list[float] = Field(description="One per class, 0 to 1, in the caller's order.")


TASK = Task(
    name="zero-shot-image-classification",
    summary="Which of the classes that you name does the image show?",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "classes": ["cat", "dog"], "config": {}},
        output={"probabilities": [0.9987, 0.0013]},
        model="conse-lite0",
    ),
)
