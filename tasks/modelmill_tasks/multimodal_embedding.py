"""Multimodal embedding: vectors of texts and images in one space, so that each finds the other kind."""

from __future__ import annotations

import base64
import io
from typing import Annotated, Any

from pydantic import Field, model_validator

from modelmill_tasks.contract import Batched, Example, Task, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.fields import EmbeddingConfig, Part, Text
from modelmill_tasks.shared.images import Image, open_image


class Config(EmbeddingConfig):
    """Options of the model."""


class Content(Part):
    """A text or an image."""

    text: Text | None = Field(None, description="Text beyond the model's window is cut off.")
    image: Image | None = None

    @model_validator(mode="after")
    def _one_of_them(self) -> Content:
        if (self.text is None) == (self.image is None):
            raise ValueError("give exactly one of text and image")
        return self


class Input(TaskInput):
    input: Annotated[Content, Batched] = Field(
        description="A text or an image, exactly one of them. A batched job may mix both."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    embedding: list[float] = Field(description="In one space for texts and images.")


TEXTS = (
    "a photo of a cat",
    "A red double-decker bus waits at the corner, and nobody gets on, since it has begun to rain.",
    "tea",
    "two dogs run along the beach",
)


def samples(count: int) -> list[dict[str, Any]]:
    """Texts and images in turn: parts of the example's photo, of unequal sizes."""
    photo = open_image(CAT)
    items: list[dict[str, Any]] = []
    for index in range(count):
        if index % 2:
            items.append({"input": {"text": f"{TEXTS[index // 2 % len(TEXTS)]} {index}"}})
            continue
        buffer = io.BytesIO()
        step = index % 10
        part = photo.crop((step * 5, step * 3, photo.width - step * 4, photo.height - index))
        part.save(buffer, "PNG")
        data = base64.b64encode(buffer.getvalue()).decode()
        items.append({"input": {"image": f"data:image/png;base64,{data}"}})
    return items


TASK = Task(
    name="multimodal-embedding",
    group=TaskGroup.IMAGES_AND_TEXT,
    summary="Vectors of texts and images in one space, so that each finds the other kind.",
    input=Input,
    output=Output,
    example=Example(
        input={"input": {"text": "a photo of a cat"}},
        # Abridged: the first 4 of 384 numbers.
        output={"embedding": [0.033, 0.0912, 0.0277, 0.0236]},
        model="conse-lite0",
    ),
    samples=samples,
)
