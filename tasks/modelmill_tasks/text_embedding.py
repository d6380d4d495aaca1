"""Text embedding: a vector. Texts with a similar meaning have vectors near each other."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import EmbeddingConfig, Text


class Config(EmbeddingConfig):
    """Options of the model."""

    prompt_name: str | None = Field(
        None, max_length=100, description="One of the model's own prompts, put before the text."
    )


class Input(TaskInput):
    text: Annotated[Text, Batched] = Field(description="The text. Text beyond the model's window is cut off.")
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    embedding: list[float]


TASK = Task(
    name="text-embedding",
    group=TaskGroup.TEXT,
    summary="A vector; texts with a similar meaning have vectors near each other.",
    input=Input,
    output=Output,
    example=Example(
        input={"text": "A cat sleeps on the sofa."},
        # Abridged: the first 4 of 384 numbers.
        output={"embedding": [0.1645, -0.0697, -0.0501, 0.0512]},
        model="minilm",
    ),
)
