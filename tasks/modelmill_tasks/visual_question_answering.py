"""Visual question answering: answers a question about an image."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import Created, Part, Score, Text
from modelmill_tasks.shared.generation import GenerationConfig
from modelmill_tasks.shared.images import Image


class Config(GenerationConfig):
    """Options of the model.

    A model that chooses among fixed answers reads only ``num_answers``. A model that writes its answer reads
    the other options, and gives ``num_return_sequences`` answers.
    """

    num_answers: int = Field(5, ge=1, le=100, description="Answers to give at most, best first.")


class Input(TaskInput):
    image: Annotated[Image, Batched]
    question: Annotated[Text, Batched] = Field(
        description="The question. A question that is longer than the model's window is refused."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Answer(Part):
    answer: str
    score: Score | None = Field(description="0 to 1; null if the model writes its answer.")


class Output(TaskOutput):
    answers: list[Answer]
    created: Created


TASK = Task(
    name="visual-question-answering",
    group=TaskGroup.IMAGES_AND_TEXT,
    summary="Answers a question about an image.",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "question": "What animal is it?", "config": {"num_answers": 2}},
        output={
            "answers": [{"answer": "cat", "score": 0.9973}, {"answer": "kitten", "score": 0.0105}],
            "created": 1763717262,
        },
        model="vilt-vqa",
        real=False,
    ),
)
