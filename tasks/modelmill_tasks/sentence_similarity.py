"""Sentence similarity: how near in meaning is each of these sentences to the source sentence?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import MAX_CLASSES, Text

Cosine = Annotated[float, Field(ge=-1, le=1)]


class Config(TaskConfig):
    """Options of the model."""


class Input(TaskInput):
    source_sentence: Annotated[Text, Batched] = Field(
        description="The sentence with which the others are compared. Text beyond the model's window "
        "is cut off."
    )
    sentences: Annotated[list[Text], Field(min_length=1, max_length=MAX_CLASSES)] = Field(
        description="The sentences to compare. Text beyond the model's window is cut off."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    scores: list[Cosine] = Field(
        description="One per sentence, in the caller's order: the cosine of the two vectors, -1 to 1."
    )


TASK = Task(
    name="sentence-similarity",
    group=TaskGroup.TEXT,
    summary="How near in meaning is each of these sentences to the source sentence?",
    input=Input,
    output=Output,
    example=Example(
        input={
            "source_sentence": "A man is eating food.",
            "sentences": ["A man eats something.", "The stock market fell sharply."],
        },
        output={"scores": [0.8749, -0.0044]},
        model="minilm",
    ),
)
