"""Text to image: pictures of what a prompt describes."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import Created, Part, Text
from modelmill_tasks.shared.generation import MAX_SEED

MIN_SIDE, MAX_SIDE = 64, 2048
"""Bounds of an image's width and height, in pixels."""
MAX_ASPECT = 4
"""How many times longer one side may be than the other, where an aspect ratio is asked."""

Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=8)]


class Finish(StrEnum):
    """How an image came out."""

    SUCCESSFUL = "successful"
    CONTENT_FILTERED = "content_filtered"
    """The model's own safety checker withheld it: what is returned is black."""


class Config(TaskConfig):
    """What tunes the model. What is not set is the model's own default."""

    negative_prompt: Text | None = Field(
        None,
        description="What the image should not show. Takes effect where the guidance is above 1.",
        examples=["blurry, text"],
    )
    num_images: int = Field(1, ge=1, le=8, description="Images to make of one prompt.")
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Of the first image; the next ones count up from it. Drawn at random when not set. "
        "The same seed makes the same image, whatever else runs in the batch.",
    )
    aspect_ratio: str | None = Field(
        None,
        pattern=r"^[1-9]\d{0,3}:[1-9]\d{0,3}$",
        description="Width to height, in place of width and height: an image of that form and of about as "
        f"many pixels as the model's own size. From 1:{MAX_ASPECT} to {MAX_ASPECT}:1.",
        examples=["16:9"],
    )
    width: Side | None = Field(
        None, description="In pixels, a multiple of 8; the model's own when not set, whatever the height."
    )
    height: Side | None = Field(
        None, description="In pixels, a multiple of 8; the model's own when not set, whatever the width."
    )
    num_inference_steps: int | None = Field(
        None, ge=1, le=200, description="Steps from noise to image; more take longer."
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=50, description="How closely to follow the prompt; 1 and below is no guidance."
    )
    output_format: Literal["png", "jpeg", "webp"] = Field(
        "png", description="File format of the images: png is lossless, jpeg and webp are smaller."
    )

    @field_validator("aspect_ratio")
    @classmethod
    def _moderate(cls, value: str | None) -> str | None:
        if value is not None:
            width, height = (int(side) for side in value.split(":"))
            if max(width, height) > MAX_ASPECT * min(width, height):
                raise ValueError(f"must lie between 1:{MAX_ASPECT} and {MAX_ASPECT}:1")
        return value

    @model_validator(mode="after")
    def _one_size(self) -> Config:
        if self.aspect_ratio is not None and (self.width is not None or self.height is not None):
            raise ValueError("give aspect_ratio, or width and height, not both")
        return self


class Input(TaskInput):
    prompt: Annotated[Text, Batched] = Field(
        description="What the image shows. What is longer than the model's window is cut off; "
        "with CLIP, that is 77 tokens."
    )
    config: Config = Field(default_factory=Config, description="What tunes the model.")


class GeneratedImage(Part):
    """One image of a prompt."""

    image: str = Field(
        description="The file as a data URL; black where it was withheld.",
        examples=["data:image/png;base64,iVBORw0K…"],
    )
    seed: int = Field(description="What it was drawn from: with num_images 1, this seed makes it again.")
    finish_reason: Finish = Field(
        description="content_filtered where the model's safety checker withheld it."
    )


class Output(TaskOutput):
    images: list[GeneratedImage] = Field(description="In the order of their seeds.")
    created: Created


def _samples(count: int) -> Sequence[dict[str, Any]]:
    """Unequal prompts, each with a seed of its own: without one, no answer is like another."""
    subjects = (
        "a red mill by a river",
        "a cat",
        "three owls in a dark loft, oil on canvas",
        "bread",
        "a tower",
    )
    return [
        {
            "prompt": f"{subjects[index % len(subjects)]}, number {index}",
            "config": {"seed": 7 * index, "num_images": 1 + index % 2, "num_inference_steps": 2}
            | ({"negative_prompt": "blurry"} if index % 3 == 1 else {}),
        }
        for index in range(count)
    ]


TASK = Task(
    name="text-to-image",
    group=TaskGroup.IMAGES_AND_TEXT,
    summary="Pictures of what a prompt describes.",
    input=Input,
    output=Output,
    example=Example(
        input={
            "prompt": "A watermill in autumn, watercolour",
            "config": {"seed": 42, "aspect_ratio": "3:2", "output_format": "webp"},
        },
        output={
            "images": [
                {
                    # Abridged.
                    "image": "data:image/webp;base64,UklGRg==",
                    "seed": 42,
                    "finish_reason": "successful",
                }
            ],
            "created": 1767225600,
        },
        model="stable-diffusion-xl",
        real=False,
    ),
    samples=_samples,
)
