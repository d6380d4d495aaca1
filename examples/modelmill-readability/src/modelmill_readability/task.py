"""Readability: how easy is a text to read?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill.plugin import Batched, Example, Part, Task, TaskConfig, TaskInput, TaskOutput, Text


class Config(TaskConfig):
    """Options of the answer."""

    per_sentence: bool = Field(False, description="Also rate each sentence by itself.")


class Input(TaskInput):
    text: Annotated[Text, Batched] = Field(description="The text, of whole sentences.")
    config: Config = Field(default_factory=Config, description="Options of the answer.")


class Sentence(Part):
    """One sentence of the text."""

    sentence: str
    reading_ease: float


class Output(TaskOutput):
    reading_ease: float = Field(
        description="About 0 (very difficult) to 100 (very easy); both ends are open."
    )
    words: int
    sentences: int
    syllables: int
    per_sentence: list[Sentence] | None = Field(
        None, description="In the text's order; null unless per_sentence is true."
    )


TASK = Task(
    name="readability",
    summary="How easy is a text to read?",
    input=Input,
    output=Output,
    example=Example(
        input={"text": "The cat sat on the mat. It was happy."},
        output={
            "reading_ease": 108.2675,
            "words": 9,
            "sentences": 2,
            "syllables": 10,
            "per_sentence": None,
        },
        model="flesch-english",
    ),
)
