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
"""How many times longer one side may be than the other, if the request gives an aspect ratio."""

Side = Annotated[int, Field(ge=MIN_SIDE, le=MAX_SIDE, multiple_of=8)]


class Finish(StrEnum):
    """How an image came out."""

    SUCCESSFUL = "successful"
    CONTENT_FILTERED = "content_filtered"
    """The model's own safety checker withheld the image: the answer holds a black one."""


class Config(TaskConfig):
    """Options of the model. If one is not set, the model uses its own default."""

    negative_prompt: Text | None = Field(
        None,
        description="Things that the image must not show. It has an effect only if the guidance is above 1.",
        examples=["blurry, text"],
    )
    num_images: int = Field(1, ge=1, le=8, description="Images to make for one prompt.")
    seed: int | None = Field(
        None,
        ge=0,
        le=MAX_SEED,
        description="Seed of the first image; the next ones count up from it. Random if not set. The same "
        "seed makes the same image, also in a batch with other items.",
    )
    aspect_ratio: str | None = Field(
        None,
        pattern=r"^[1-9]\d{0,3}:[1-9]\d{0,3}$",
        description="Width to height, instead of width and height: an image of this form, with about as many "
        f"pixels as the model's own size. From 1:{MAX_ASPECT} to {MAX_ASPECT}:1.",
        examples=["16:9"],
    )
    width: Side | None = Field(
        None, description="In pixels, a multiple of 8; the model's own if not set, also if height is set."
    )
    height: Side | None = Field(
        None, description="In pixels, a multiple of 8; the model's own if not set, also if width is set."
    )
    num_inference_steps: int | None = Field(
        None, ge=1, le=200, description="Steps from noise to image; more take longer."
    )
    guidance_scale: float | None = Field(
        None, ge=0, le=50, description="How closely to follow the prompt; 1 and below mean no guidance."
    )
    output_format: Literal["png", "jpeg", "webp"] = Field(
        "png", description="File format of the images: png is lossless, jpeg and webp are smaller."
    )

    @field_validator("aspect_ratio")
    @classmethod
    def _within_max_aspect(cls, value: str | None) -> str | None:
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
        description="A description of the image. Text beyond the model's window is cut off; with CLIP, "
        "the window has 77 tokens."
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class GeneratedImage(Part):
    """One image for a prompt."""

    image: str = Field(
        description="The file as a data URL; black if the safety checker withheld the image.",
        examples=["data:image/png;base64,iVBORw0K…"],
    )
    seed: int = Field(description="Seed of this image: with num_images 1, the same seed makes it again.")
    finish_reason: Finish = Field(
        description="content_filtered if the model's safety checker withheld the image."
    )


class Output(TaskOutput):
    images: list[GeneratedImage] = Field(description="In the order of their seeds.")
    created: Created


def _samples(count: int) -> Sequence[dict[str, Any]]:
    """Unequal prompts, each with its own seed: without a seed, no two answers are equal."""
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
