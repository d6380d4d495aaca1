"""Image embedding: a vector that lies near the vectors of images that show the like."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import EmbeddingConfig
from modelmill_tasks.shared.media import Image


class Config(EmbeddingConfig):
    """What tunes the model."""


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="What tunes the model.")


class Output(TaskOutput):
    embedding: list[float]


TASK = Task(
    name="image-embedding",
    group=TaskGroup.IMAGES,
    summary="A vector that lies near the vectors of images that show the like.",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT},
        # Abridged: the first 4 of 1280 numbers.
        output={"embedding": [0.1244, 0.3203, 0.0, 0.4722]},
        model="efficientnet-lite0",
    ),
)
