"""Question answering: what does the text say about the question?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from modelmill.errors import ErrorCode
from modelmill_tasks.contract import (
    Batched,
    Example,
    Task,
    TaskConfig,
    TaskGroup,
    TaskInput,
    TaskOutput,
    field_problem,
)
from modelmill_tasks.shared.fields import Part, Score, Text, TopK

MAX_HISTORY = 100
"""Earlier questions that one item may bring."""


class Config(TaskConfig):
    """Options of the model."""

    top_k: TopK = Field(1, description="How many answers to return at most.")
    max_answer_length: int = Field(
        15, ge=1, le=1000, description="Tokens of the longest answer, by the model's tokenizer."
    )


class Input(TaskInput):
    question: Annotated[Text, Batched] = Field(
        description="The question. Text beyond half of the model's window is cut off."
    )
    # Not marked as batched, so that a batched job may ask many questions of one context.
    context: Text | None = Field(
        None,
        description="The text that holds the answer. Models that find answers in a text need it. They read a "
        "longer text in overlapping parts of the length of their window.",
    )
    prev_q: list[Text] = Field(
        default_factory=list,
        max_length=MAX_HISTORY,
        description="Earlier questions of a conversation, for models that use them.",
    )
    prev_a: list[Text] = Field(
        default_factory=list,
        max_length=MAX_HISTORY,
        validate_default=True,
        description="The answers to prev_q, one per question.",
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")

    @field_validator("prev_a")
    @classmethod
    def _one_a_question(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if problem := history_problem(info.data.get("prev_q", value), value):
            raise field_problem(ErrorCode.INVALID_INPUT, problem)
        return value


class Answer(Part):
    """An answer, and its place in the context."""

    answer: str
    score: Score | None = Field(description="0 to 1; null if the model gives none.")
    start: int | None = Field(
        ge=0,
        description="Code points of the context before the answer; null if the answer is not from the "
        "context.",
    )
    end: int | None = Field(
        ge=0, description="Code points of the context up to the answer's end; null if start is null."
    )


class Output(TaskOutput):
    answers: list[Answer] = Field(description="Best first; each place of the context at most once.")


def history_problem(prev_q: Sequence[str], prev_a: Sequence[str]) -> str | None:
    """The message for a ``prev_a`` that does not match ``prev_q``; None if they match.

    The contract checks plain jobs. A runner that uses both fields also checks the items of batched jobs.
    """
    if len(prev_q) == len(prev_a):
        return None
    return f"has {len(prev_a)} values, but prev_q has {len(prev_q)}; give one answer per question"


def samples(count: int) -> Sequence[dict[str, Any]]:
    """Several questions of several texts."""
    mill = (
        "The old mill had not turned for forty years. When Anna came back from Berlin in the spring of "
        "1998, she found the wheel broken and a family of owls in the loft."
    )
    trees = "Oaks grow slowly. A beech may live for 300 years, and a yew for more than 2,000."
    questions = (
        ("When did Anna come back?", mill),
        ("Where did she come from?", mill + " By autumn the wheel was mended."),
        ("Which tree lives longest?", trees),
        ("What lived in the loft of the mill?", mill),
        ("How old does a beech become?", trees + " " + mill),
    )
    asked = [questions[index % len(questions)] for index in range(count)]
    return [
        {"question": question, "context": context, "config": {"top_k": 1 + index % 3}}
        for index, (question, context) in enumerate(asked)
    ]


TASK = Task(
    name="question-answering",
    group=TaskGroup.TEXT,
    summary="What does the text say about the question?",
    input=Input,
    output=Output,
    example=Example(
        input={
            "question": "Where do the owls live?",
            "context": "The mill is empty. A family of owls lives in the loft.",
            "config": {},
        },
        output={"answers": [{"answer": "in the loft", "score": 0.7421, "start": 42, "end": 53}]},
        model="distilbert-squad",
        real=False,
    ),
    samples=samples,
)
