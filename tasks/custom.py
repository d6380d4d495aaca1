"""Custom: whatever your own function takes and gives, for what no other task fits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationInfo

from tasks.contract import Batched, Example, Task, TaskInput, TaskOutput


def _strict_json(value: Any, info: ValidationInfo) -> Any:
    """Refuses NaN and infinities, which the parser reads and which are no JSON."""
    waiting = [] if (info.context or {}).get("trusted") else [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)
        elif isinstance(part, float) and not math.isfinite(part):
            raise ValueError("holds a number that JSON does not have: NaN, or one that is too large")
    return value


Json = Annotated[Any, AfterValidator(_strict_json)]


class Input(TaskInput):
    input: Annotated[Json, Batched] = Field(
        description="Any JSON value. In a batched job: a list with one value for each item."
    )
    config: Annotated[dict[str, Any], AfterValidator(_strict_json)] = Field(
        default_factory=dict,
        description="Any JSON object; the function gets it as it is. Items of equal config share a call.",
    )


class Output(TaskOutput):
    output: dict[str, Any] = Field(description="What the function gave for this item.")


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
    summary="Whatever your own function takes and gives.",
    input=Input,
    output=Output,
    example=Example(
        input={"input": "The mill turns, and the mill grinds.", "config": {"top_k": 2}},
        output={"output": {"words": 7, "most_common": [["the", 2], ["mill", 2]]}},
        model="word-count",
    ),
    samples=_samples,
)
