"""Image-text embedding: one vector for an image together with a text, and one for each of them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import EmbeddingConfig, Text
from modelmill_tasks.shared.images import Image


class Config(EmbeddingConfig):
    """Options of the model."""

    normalize: bool | None = Field(
        None,
        description="Scale image_embedding and text_embedding to length 1; the model's own way if not set. "
        "The embedding of both always has length 1.",
    )


class Input(TaskInput):
    image: Annotated[Image, Batched]
    text: Annotated[Text, Batched] = Field(
        description="The text that goes with the image. Text beyond the model's window is cut off."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    embedding: list[float] = Field(
        description="The image's vector, then the text's: each is scaled to length 1, then both together. "
        "So the dot product of two such vectors is the mean of the images' and the texts' cosine."
    )
    image_embedding: list[float]
    text_embedding: list[float] = Field(description="In the same space as the image's.")


TASK = Task(
    name="image-text-embedding",
    group=TaskGroup.IMAGES_AND_TEXT,
    summary="One vector for an image together with a text, and one for each of them.",
    input=Input,
    output=Output,
    example=Example(
        input={"image": CAT, "text": "A ginger cat looks into the camera."},
        # Abridged: the first 4 of 768, 384 and 384 numbers.
        output={
            "embedding": [-0.0137, 0.0807, 0.0065, 0.012],
            "image_embedding": [-0.0194, 0.1141, 0.0092, 0.0169],
            "text_embedding": [0.0268, 0.0017, -0.0247, -0.0179],
        },
        model="conse-lite0",
    ),
)
