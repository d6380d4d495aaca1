"""Zero-shot classification: which of the classes that you name does the text belong to?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import Classes, Score, Text, ZeroShotConfig


class Config(ZeroShotConfig):
    """Options of the model."""


class Input(TaskInput):
    text: Annotated[Text, Batched] = Field(description="The text. Text beyond the model's window is cut off.")
    classes: Classes = Field(description="The classes to choose from.")
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    probabilities: list[Score] = Field(description="One per class, 0 to 1, in the caller's order.")


TASK = Task(
    name="zero-shot-classification",
    group=TaskGroup.TEXT,
    summary="Which of the classes that you name does the text belong to?",
    input=Input,
    output=Output,
    example=Example(
        input={
            "text": "The striker scored twice in the second half.",
            "classes": ["sport", "politics", "cooking"],
            "config": {},
        },
        output={"probabilities": [0.7756, 0.0865, 0.1378]},
        model="minilm",
    ),
)
