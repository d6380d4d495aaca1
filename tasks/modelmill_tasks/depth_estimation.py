"""Depth estimation: how far away is each pixel of the image?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.images import Image


class Config(TaskConfig):
    """This task has nothing to tune."""


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    """The map and the two numbers that turn its grey values back into the model's own."""

    depth: str = Field(
        description="Map of the image's size: a 16-bit PNG of one channel, as a data URL. The model's value "
        "at a pixel is minimum + grey / 65535 × (maximum − minimum).",
        examples=["data:image/png;base64,iVBORw0K…"],
    )
    minimum: float = Field(
        description="The model's value where the map is 0. The unit is the model's: for some, larger is "
        "nearer (DPT and Depth Anything give relative inverse depth), for others farther (metres)."
    )
    maximum: float = Field(description="The model's value where the map is 65535.")


TASK = Task(
    name="depth-estimation",
    group=TaskGroup.IMAGES,
    summary="How far away is each pixel of the image?",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "config": {}},
        output={
            "depth": "data:image/png;base64,"
            "iVBORw0KGgoAAAANSUhEUgAAAHAAAABwEAAAAACzG3fUAAAAn0lEQVR42u3ZQQ2AMBBE0Z"
            "YgpYjBS9UgpmKKmOJhLiTN+w5e9jTZUiRJkiQpqbZnb+Cx+wUBAQEBAQEBAQEBf1sTd3NBQEBAQEBAQEBAQMCg028CEB"
            "AQEBAQEBAQEDBbE5c1AQgICAgICAgICAiYVMd0QUBAQEBAQEBAQEDAZE283QUBAQEBAQEBAQEBAZM1sZYLAgICAgICAg"
            "ICAgIGfeRqCCnVU8NkAAAAAElFTkSuQmCC",
            "minimum": 0.4127,
            "maximum": 9.8361,
        },
        model="depth-anything-small",
        real=False,
    ),
)
