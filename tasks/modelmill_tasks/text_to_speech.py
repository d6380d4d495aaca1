"""Text to speech: a recording of the spoken text."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import Created
from modelmill_tasks.shared.generation import MAX_SEED

MAX_SPOKEN = 2000
"""Characters of one text: about two minutes of speech."""


class Config(TaskConfig):
    """Options of the model."""

    speaker: int | None = Field(
        None, ge=0, description="Number of the voice, from 0, for models with several; 0 if not set."
    )
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Another seed gives a slightly different speech; 0 if not set. The same seed gives "
        "the same speech on one kind of device.",
    )


class Input(TaskInput):
    text: Annotated[str, Batched] = Field(
        min_length=1,
        max_length=MAX_SPOKEN,
        description="The text; send a longer one as several items. The model leaves out characters that it "
        "cannot speak.",
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    audio: str = Field(
        description="The speech as the data URL of a WAV file, 16 bits, one channel.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "audio/wav"},
    )
    sampling_rate: int = Field(gt=0, description="Samples a second.")
    duration_s: float = Field(ge=0, description="Length in seconds.")
    created: Created


TASK = Task(
    name="text-to-speech",
    group=TaskGroup.SOUND,
    summary="A recording of the spoken text.",
    input=Input,
    output=Output,
    example=Example(
        input={"text": "The mill turns again.", "config": {"seed": 7}},
        output={
            # The form only: four samples of silence.
            "audio": "data:audio/wav;base64,"
            "UklGRiwAAABXQVZFZm10IBAAAAABAAEAgD4AAAB9AAACABAAZGF0YQgAAAAAAAAAAAAAAA==",
            "sampling_rate": 16000,
            "duration_s": 0.0003,
        },
        model="mms-tts-eng",
        real=False,
    ),
)
