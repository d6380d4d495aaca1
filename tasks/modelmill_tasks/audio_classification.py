"""Audio classification: which sounds does the recording hold, among the classes that the model knows?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.image_classification import Class
from modelmill_tasks.shared.audio import DESCRIPTION, Audio
from modelmill_tasks.shared.examples import SPEECH
from modelmill_tasks.shared.fields import TopK


class Config(TaskConfig):
    """Options of the model."""

    top_k: TopK = Field(5, description="How many classes to return.")


class Input(TaskInput):
    audio: Annotated[Audio, Batched] = Field(
        description=f"{DESCRIPTION} The model hears no more than its window, and at most the first minute; "
        "a warning says so."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    classes: list[Class] = Field(description="Best first.")


TASK = Task(
    name="audio-classification",
    group=TaskGroup.SOUND,
    summary="Which sounds does the recording hold, among the classes that the model knows?",
    input=Input,
    output=Output,
    example=Example(
        input={"audio": SPEECH, "config": {"top_k": 2}},
        output={
            "classes": [
                {"label": "Speech", "score": 0.8},
                {"label": "Male speech, man speaking", "score": 0.1},
            ]
        },
        model="ast-audioset",
        real=False,
    ),
)
