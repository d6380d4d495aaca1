"""Sentence similarity: how near in meaning is each of these sentences to the source sentence?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import MAX_CLASSES, Text

Cosine = Annotated[float, Field(ge=-1, le=1)]


class Config(TaskConfig):
    """What tunes the model."""


class Input(TaskInput):
    source_sentence: Annotated[Text, Batched] = Field(
        description="What the sentences are compared with. What is longer than the model's window is cut off."
    )
    sentences: Annotated[list[Text], Field(min_length=1, max_length=MAX_CLASSES)] = Field(
        description="The sentences to compare. What is longer than the model's window is cut off."
    )
    config: Config = Field(default_factory=Config, description="What tunes the model.")


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
