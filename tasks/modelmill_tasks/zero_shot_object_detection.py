"""Zero-shot object detection: where in the image are the things that you name?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import Classes
from modelmill_tasks.shared.images import Image
from modelmill_tasks.shared.regions import DetectedObject, Threshold, TopObjects


class Config(TaskConfig):
    threshold: Threshold = Field(0.1, description="Objects with a score above it are returned.")
    top_k: TopObjects = None


class Input(TaskInput):
    image: Annotated[Image, Batched]
    classes: Classes = Field(
        description="The things to look for, each a word or a phrase, such as: a photo of a cat. Text "
        "beyond the model's window is cut off (16 tokens for OWL-ViT and OWLv2).",
        examples=[["cat", "remote control"]],
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    objects: list[DetectedObject] = Field(
        description="Best first; empty if the model found none. The model judges each class by itself, so "
        "one place may be in the answer under several classes. A label is the class as the caller wrote "
        "it."
    )


TASK = Task(
    name="zero-shot-object-detection",
    group=TaskGroup.IMAGES,
    summary="Where in the image are the things that you name?",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "classes": ["a cat", "a dog"], "config": {"threshold": 0.3}},
        output={
            "objects": [
                {
                    "label": "a cat",
                    "score": 0.5872,
                    "box": {"left": 1.12, "top": 0.94, "width": 110.38, "height": 110.71},
                }
            ]
        },
        model="owlv2-base",
        real=False,
    ),
)
