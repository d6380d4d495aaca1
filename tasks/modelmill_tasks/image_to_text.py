"""Image to text: a caption of the image or the text on it, depending on the model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import Created, Text
from modelmill_tasks.shared.generation import GenerationConfig, Usage
from modelmill_tasks.shared.images import Image


class Config(GenerationConfig):
    """Options of the model."""


class Input(TaskInput):
    image: Annotated[Image, Batched]
    # Not marked as batched, so that callers may leave it out. A batched job gives one text, or one per item.
    text: Text | None = Field(
        None,
        description="The beginning of the text, such as 'a photo of'; the model continues it. Models that "
        "cannot do this refuse it. A text that fills the model's window is refused.",
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    text: str = Field(
        description="The text with its given beginning; the first one if num_return_sequences asks "
        "for several."
    )
    usage: Usage
    created: Created


TASK = Task(
    name="image-to-text",
    group=TaskGroup.IMAGES_AND_TEXT,
    summary="A caption of the image or the text on it, depending on the model.",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "config": {"max_new_tokens": 20}},
        output={
            "text": "a close up of a cat looking at the camera",
            "usage": {"prompt_tokens": 1, "completion_tokens": 11, "total_tokens": 12},
            "created": 1763717262,
        },
        model="blip-captioning",
        real=False,
    ),
)
