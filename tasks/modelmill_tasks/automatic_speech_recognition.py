"""Automatic speech recognition: what is said in the recording?"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.audio import Audio
from modelmill_tasks.shared.examples import SPEECH
from modelmill_tasks.shared.fields import Part


class Config(TaskConfig):
    """Options of the model."""

    language: str | None = Field(
        None,
        min_length=2,
        max_length=50,
        description="The language that is spoken, as its code or English name (de, german). If it is not "
        "set, a model of several languages detects it.",
    )
    translate: StrictBool = Field(
        False, description="Answer in English, also if another language is spoken; only some models can."
    )
    return_timestamps: StrictBool | Literal["word"] = Field(
        False,
        description="Also give the times of the text: true for each segment (as the model marks segments; "
        'if it does not, the text between pauses of half a second), "word" for each word.',
    )


class Input(TaskInput):
    audio: Annotated[Audio, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Chunk(Part):
    """A part of the text, with the time at which it was said."""

    text: str
    start: float = Field(ge=0, description="Seconds from the start of the recording.")
    end: float | None = Field(ge=0, description="Seconds; null if the model does not give it.")


class Output(TaskOutput):
    text: str = Field(description="The words that are said; empty if the model hears no speech.")
    chunks: list[Chunk] | None = Field(
        None, description="The segments or words, in the order of time; null if return_timestamps is false."
    )


TASK = Task(
    name="automatic-speech-recognition",
    group=TaskGroup.SOUND,
    summary="What is said in the recording?",
    input=Input,
    output=Output,
    example=Example(
        input={"audio": SPEECH, "config": {"return_timestamps": "word"}},
        output={
            "text": "go forward ten meters",
            "chunks": [
                {"text": "go", "start": 0.46, "end": 0.63},
                {"text": "forward", "start": 0.63, "end": 1.17},
                {"text": "ten", "start": 1.17, "end": 1.53},
                {"text": "meters", "start": 1.53, "end": 2.12},
            ],
        },
        model="pocketsphinx-en",
    ),
)
