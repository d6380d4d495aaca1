"""Image embedding: a vector. Images that show similar things have vectors near each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import EmbeddingConfig
from modelmill_tasks.shared.images import Image


class Config(EmbeddingConfig):
    """Options of the model."""


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    embedding: list[float]


TASK = Task(
    name="image-embedding",
    group=TaskGroup.IMAGES,
    summary="A vector; images that show similar things have vectors near each other.",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT},
        # Abridged: the first 4 of 1280 numbers.
        output={"embedding": [0.1244, 0.3203, 0.0, 0.4722]},
        model="efficientnet-lite0",
    ),
)
