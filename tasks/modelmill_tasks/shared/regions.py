"""Regions of an image in results: boxes and masks, in pixels of the original after its EXIF rotation."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from modelmill_tasks.shared.fields import Part, Score

MAX_OBJECTS = 1000
"""Objects that one answer holds at most."""

Size = Annotated[
    list[Annotated[int, Field(ge=0)]],
    Field(min_length=2, max_length=2, description="[height, width] of the image, in pixels."),
]

Rle = Annotated[
    str,
    Field(
        pattern=r"^\d+(,\d+)*$",
        description="Mask over the whole image: COCO's uncompressed run lengths, column by column, "
        "separated by commas, beginning with the count of zeros (which may be 0).",
        examples=["2918,12,382,33"],
    ),
]
"""Source of the format: pycocotools' mask API, "uncompressed RLE"."""

PngMask = Annotated[
    str,
    Field(
        description="Mask of the image's size: an 8-bit PNG of one channel, 0 or 255, as a data URL.",
        examples=["data:image/png;base64,iVBORw0K…"],
    ),
]

Threshold = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
"""The score that an object needs to be in the answer."""

TopObjects = Annotated[
    Annotated[int, Field(ge=1, le=MAX_OBJECTS)] | None,
    Field(description=f"How many objects to return at most, best first; all (up to {MAX_OBJECTS}) if null."),
]


class Box(Part):
    """A rectangle. Its right edge is ``left + width``, its lower edge ``top + height``."""

    left: float
    top: float
    width: float = Field(ge=0)
    height: float = Field(ge=0)


class PixelBox(Part):
    """The smallest rectangle of whole pixels around a mask; its right edge is ``left + width``."""

    left: int = Field(ge=0)
    top: int = Field(ge=0)
    width: int = Field(ge=0)
    height: int = Field(ge=0)


class DetectedObject(Part):
    """An object that the model found, and its place."""

    label: str
    score: Score
    box: Box = Field(description="Around the object, within the image.")
