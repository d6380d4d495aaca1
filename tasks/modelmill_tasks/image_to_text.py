"""Image to text: a caption, or what is written on the image, as the model was trained for."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import Created, Text
from modelmill_tasks.shared.generation import GenerationConfig, Usage
from modelmill_tasks.shared.media import Image


class Config(GenerationConfig):
    """What tunes the model."""


class Input(TaskInput):
    image: Annotated[Image, Batched]
    # Not marked as batched, so that it can be left out: a batched job gives one for all, or one an item.
    text: Text | None = Field(
        None,
        description="How the text begins, such as 'a photo of'; the model goes on from there. A model that "
        "takes none refuses it. One that fills the model's window is refused.",
    )
    config: Config = Field(default_factory=Config, description="What tunes the model.")


class Output(TaskOutput):
    text: str = Field(
        description="The first text, where num_return_sequences asks for several; with its given beginning."
    )
    usage: Usage
    created: Created


TASK = Task(
    name="image-to-text",
    group=TaskGroup.IMAGES_AND_TEXT,
    summary="A caption, or what is written on the image, as the model was trained for.",
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
