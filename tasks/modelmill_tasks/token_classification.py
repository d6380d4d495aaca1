"""Token classification: which words of the text are names, places, or other things that the model marks?"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import Part, Score, Text


class AggregationStrategy(StrEnum):
    """How the tags of tokens become entities."""

    NONE = "none"
    """They stay tokens: each has its raw tag, such as ``B-PER``."""
    SIMPLE = "simple"
    """Neighbours with the same tag are joined. They may be words or parts of words."""
    FIRST = "first"
    """Joined by words; a word has the tag of its first token."""
    AVERAGE = "average"
    """Joined by words; a word has the tag that is best on the average of its tokens."""
    MAX = "max"
    """Joined by words; a word has the tag of its token with the highest score."""


class Config(TaskConfig):
    """Options of the model."""

    aggregation_strategy: AggregationStrategy = Field(
        AggregationStrategy.SIMPLE,
        description="How tokens become entities. none: they stay tokens, entity_group holds each token's "
        "raw tag. simple: neighbours with the same tag are joined. first, average, max: whole words with "
        "the same tag are joined; a word has the tag of its first token, of its tokens' average, or of "
        "its token with the highest score.",
    )


class Input(TaskInput):
    text: Annotated[Text, Batched] = Field(
        description="The text. The model reads a long text in overlapping parts of the length of its window."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Entity(Part):
    """A piece of the text, and its label."""

    entity_group: str = Field(
        description="The model's label, such as PER; with its prefix if tokens are not joined."
    )
    score: Score
    word: str = Field(description="The piece as it stands in the text.")
    start: int = Field(ge=0, description="Code points of the text before it.")
    end: int = Field(ge=0, description="Code points of the text up to its end.")


class Output(TaskOutput):
    results: list[Entity] = Field(
        description="In the order of the text. Pieces with the tag O, which means nothing, are left out."
    )


TASK = Task(
    name="token-classification",
    group=TaskGroup.TEXT,
    summary="Which words of the text are names, places, or other things that the model marks?",
    input=Input,
    output=Output,
    example=Example(
        input={
            "text": "Anna moved from Berlin to Ravensburg.",
            "config": {"aggregation_strategy": "simple"},
        },
        output={
            "results": [
                {"entity_group": "PER", "score": 0.9983, "word": "Anna", "start": 0, "end": 4},
                {"entity_group": "LOC", "score": 0.9995, "word": "Berlin", "start": 16, "end": 22},
                {"entity_group": "LOC", "score": 0.9978, "word": "Ravensburg", "start": 26, "end": 36},
            ]
        },
        model="bert-base-ner",
        real=False,
    ),
)
