"""Text classification: which of the labels that the model knows fits the text?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import Part, Text, TopK


class Config(TaskConfig):
    """Options of the model."""

    top_k: TopK = Field(5, description="How many labels to return at most.")


class Input(TaskInput):
    text: Annotated[Text, Batched] = Field(description="The text. Text beyond the model's window is cut off.")
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Result(Part):
    """A label, and how sure the model is of it."""

    label: str
    score: float | None = Field(
        allow_inf_nan=False,
        description="0 to 1; null if the model gives none. A regression model's number may be in any range.",
    )


class Output(TaskOutput):
    results: list[Result] = Field(description="Best first.")


TASK = Task(
    name="text-classification",
    group=TaskGroup.TEXT,
    summary="Which of the labels that the model knows fits the text?",
    input=Input,
    output=Output,
    example=Example(
        input={"text": "Der Zug nach Hamburg fährt um acht Uhr ab.", "config": {"top_k": 2}},
        output={"results": [{"label": "de", "score": 0.9988}, {"label": "pt", "score": 0.0003}]},
        model="language-id",
    ),
)
