"""Summarization: a shorter text with the main points."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import Created, Text
from modelmill_tasks.shared.generation import GenerationConfig, Usage


class Config(GenerationConfig):
    """Options of the model."""


class Input(TaskInput):
    text: Annotated[Text, Batched] = Field(
        description="The text to summarise. Text beyond the model's window is cut off."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    summary_text: str = Field(
        description="The summary; the first one if num_return_sequences asks for several."
    )
    usage: Usage
    created: Created


TASK = Task(
    name="summarization",
    group=TaskGroup.TEXT,
    summary="A shorter text with the main points.",
    input=Input,
    output=Output,
    example=Example(
        input={
            "text": "The tower is 324 metres tall, about the same height as an 81-storey building, and the "
            "tallest structure in Paris. Its base is square, measuring 125 metres on each side.",
            "config": {"max_new_tokens": 40, "num_beams": 1},
        },
        output={
            "summary_text": "the tower is 324 metres tall, the tallest structure in Paris.",
            "usage": {"prompt_tokens": 48, "completion_tokens": 17, "total_tokens": 65},
            "created": 1763717262,
        },
        model="t5-base",
        real=False,
    ),
)
