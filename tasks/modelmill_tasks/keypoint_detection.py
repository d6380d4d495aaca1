"""Keypoint detection: where are the joints, eyes and ears of each person in the image?"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import Part, Score
from modelmill_tasks.shared.images import Image
from modelmill_tasks.shared.regions import Box, Threshold


class Config(TaskConfig):
    threshold: Threshold = Field(
        0.5, description="Objects with a score above it are returned, with all of their keypoints."
    )


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Keypoint(Part):
    """A point of the object that the model knows by name, such as the left elbow."""

    x: float = Field(
        description="Pixels from the left edge; a point that the image cuts off may lie outside."
    )
    y: float = Field(description="Pixels from the upper edge.")
    v: Score = Field(description="How sure the model is of the point, 0 to 1.")
    name: str | None = Field(None, description="The name of the point; null if the model has none.")


class KeypointObject(Part):
    """One person, or another object of which the model knows the keypoints."""

    score: Score = Field(
        description="How sure the detector is of the object; without a detector, the mean of its "
        "keypoints' v."
    )
    box: Box = Field(description="Around the object, within the image.")
    keypoints: list[Keypoint] = Field(description="In the model's own order.")


class Output(TaskOutput):
    objects: list[KeypointObject] = Field(description="Best first; empty if the model found none.")


TASK = Task(
    name="keypoint-detection",
    group=TaskGroup.IMAGES,
    summary="Where are the joints, eyes and ears of each person in the image?",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "config": {"threshold": 0.7}},
        output={
            "objects": [
                {
                    "score": 0.9412,
                    "box": {"left": 3.1, "top": 2.04, "width": 106.75, "height": 108.2},
                    "keypoints": [
                        {"x": 56.83, "y": 70.21, "v": 0.8127, "name": "Nose"},
                        {"x": 70.4, "y": 52.36, "v": 0.7934, "name": "L_Eye"},
                        {"x": 41.97, "y": 53.02, "v": 0.8056, "name": "R_Eye"},
                    ],
                }
            ]
        },
        model="vitpose-base",
        real=False,
    ),
)
