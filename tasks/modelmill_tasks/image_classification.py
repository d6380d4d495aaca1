"""Image classification: what does the image show, among the classes that the model knows?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.images import Image


class Config(TaskConfig):
    top_k: int = Field(5, ge=1, le=1000, description="How many classes to return.")


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Class(TaskOutput):
    label: str
    score: float = Field(description="Probability, 0 to 1.")


class Output(TaskOutput):
    classes: list[Class] = Field(description="Best first.")


TASK = Task(
    name="image-classification",
    group=TaskGroup.IMAGES,
    summary="What does the image show, among the classes that the model knows?",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "config": {"top_k": 2}},
        output={
            "classes": [
                {"label": "Egyptian cat", "score": 0.6566},
                {"label": "tabby", "score": 0.1393},
            ]
        },
        model="efficientnet-lite0",
    ),
)
