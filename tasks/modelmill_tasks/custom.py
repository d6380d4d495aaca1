"""Custom: a function of your own answers, with any JSON as input and output.

Use it for questions that no other task fits.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import Field

from modelmill_tasks.contract import STRICT_JSON, Batched, Example, Task, TaskGroup, TaskInput, TaskOutput


class Input(TaskInput):
    input: Annotated[Any, STRICT_JSON, Batched] = Field(
        description="Any JSON value. In a batched job: a list with one value for each item."
    )
    config: Annotated[dict[str, Any], STRICT_JSON] = Field(
        default_factory=dict,
        description="Any JSON object; the function gets it as it is. Items with equal config share a call.",
    )


class Output(TaskOutput):
    output: dict[str, Any] = Field(description="The function's answer for this item.")


def _samples(count: int) -> Sequence[dict[str, Any]]:
    words = ("the", "mill", "stands", "where", "the", "old", "river", "bends", "the", "road")
    return [
        {
            "input": " ".join(words[: 1 + index % len(words)] * (1 + index % 3)),
            "config": {"top_k": 1 + index % 4},
        }
        for index in range(count)
    ]


TASK = Task(
    name="custom",
    group=TaskGroup.OWN,
    summary="A function of your own answers, with any JSON as input and output.",
    input=Input,
    output=Output,
    example=Example(
        input={"input": "The mill turns, and the mill grinds.", "config": {"top_k": 2}},
        output={"output": {"words": 7, "most_common": [["the", 2], ["mill", 2]]}},
        model="word-count",
    ),
    samples=_samples,
)
