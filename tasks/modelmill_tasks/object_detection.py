"""Object detection: which objects does the image show, among those that the model knows, and where?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.images import Image
from modelmill_tasks.shared.regions import DetectedObject, Threshold, TopObjects


class Config(TaskConfig):
    threshold: Threshold = Field(0.5, description="Objects with a score above it are returned.")
    top_k: TopObjects = None


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    objects: list[DetectedObject] = Field(description="Best first; empty if the model found none.")


TASK = Task(
    name="object-detection",
    group=TaskGroup.IMAGES,
    summary="Which objects does the image show, among those that the model knows, and where?",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "config": {"threshold": 0.9}},
        output={
            "objects": [
                {
                    "label": "cat",
                    "score": 0.9981,
                    "box": {"left": 2.41, "top": 1.87, "width": 108.92, "height": 109.33},
                }
            ]
        },
        model="yolos-tiny",
        real=False,
    ),
)
