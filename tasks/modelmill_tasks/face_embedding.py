"""Face embedding: where are the faces in the image?

Each face has a vector near other vectors of the same person.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import EmbeddingConfig, Part, Score
from modelmill_tasks.shared.images import Image
from modelmill_tasks.shared.regions import Box


class Config(EmbeddingConfig):
    """Options of the model."""

    threshold: Score = Field(0.7, description="Faces with a lower score of the detector are left out.")


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Face(Part):
    """A face. Its vector identifies the person; its score says how sure the detector is that it is a face."""

    score: Score
    box: Box = Field(description="In pixels of the oriented image; may reach beyond its edges.")
    embedding: list[float]


class Output(TaskOutput):
    faces: list[Face] = Field(description="Highest score first; empty if there are none.")


TASK = Task(
    name="face-embedding",
    group=TaskGroup.IMAGES,
    summary="Where are the faces in the image? Each face has a vector near other vectors of the same person.",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "config": {"threshold": 0.7}},
        # The form of an answer, abridged: the first 4 of 128 numbers. The detector finds no cats' faces.
        output={
            "faces": [
                {
                    "score": 0.9312,
                    "box": {"left": 41.2, "top": 20.5, "width": 30.8, "height": 38.1},
                    "embedding": [0.0312, -0.1125, 0.0721, 0.0049],
                }
            ]
        },
        model="sface",
        real=False,
    ),
)
