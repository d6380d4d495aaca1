"""Fill mask: which words fit into the gap of the text?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import Part, Score, Text, TopK

MASKS = ("[MASK]", "<mask>")
"""Spellings of the gap that every model takes, besides its own."""


class Config(TaskConfig):
    """Options of the model."""

    top_k: TopK = Field(5, description="How many fillings to return at most.")


class Input(TaskInput):
    text: Annotated[Text, Batched] = Field(
        description="The text with exactly one gap, written as the model's own mask token, [MASK] or <mask>. "
        "Text beyond the model's window is cut off, on both sides of the gap.",
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Filling(Part):
    """A text that may stand in the gap."""

    score: Score
    token: int = Field(ge=0, description="The token's number in the model's vocabulary.")
    token_str: str = Field(description="The token as text.")
    sequence: str = Field(description="The text with the gap filled, as the model's tokenizer writes it.")


class Output(TaskOutput):
    results: list[Filling] = Field(description="Best first.")


def samples(count: int) -> Sequence[dict[str, Any]]:
    """Gaps at the beginning, in the middle and at the end, in short and in longer texts."""
    texts = (
        "The cat sleeps on the [MASK].",
        "[MASK] is the capital of France.",
        "She opened the door, looked into the dark garden and saw a small [MASK] under the apple tree.",
        "Two and two make <mask>",
        "The [MASK] was mended by autumn; the owls had moved to the church tower.",
        "I would like a cup of [MASK], please.",
        "[MASK]",
    )
    return [{"text": texts[index % len(texts)], "config": {"top_k": 1 + index % 5}} for index in range(count)]


TASK = Task(
    name="fill-mask",
    group=TaskGroup.TEXT,
    summary="Which words fit into the gap of the text?",
    input=Input,
    output=Output,
    example=Example(
        input={"text": "Paris is the [MASK] of France.", "config": {"top_k": 2}},
        output={
            "results": [
                {
                    "score": 0.9969,
                    "token": 3007,
                    "token_str": "capital",
                    "sequence": "paris is the capital of france.",
                },
                {
                    "score": 0.0006,
                    "token": 2540,
                    "token_str": "heart",
                    "sequence": "paris is the heart of france.",
                },
            ]
        },
        model="bert-base-uncased",
        real=False,
    ),
    samples=samples,
)
