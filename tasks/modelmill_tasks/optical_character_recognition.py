"""Optical character recognition: what is written in the image, and where?"""

from __future__ import annotations

import base64
import io
from importlib.resources import files
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from modelmill_tasks.contract import Batched, Example, Task, TaskConfig, TaskGroup, TaskInput, TaskOutput
from modelmill_tasks.shared.fields import Part, Score
from modelmill_tasks.shared.images import Image
from modelmill_tasks.shared.regions import Box

LanguageCode = Annotated[str, StringConstraints(pattern=r"^[A-Za-z]{2,3}([-_][A-Za-z0-9]{2,8})*$")]


class Config(TaskConfig):
    languages: Annotated[list[LanguageCode], Field(min_length=1, max_length=20)] | None = Field(
        None,
        description="Languages of the text, by ISO 639 codes; all that the model reads if not set. "
        "A language that the model does not read is refused.",
        examples=[["en", "de"]],
    )


class Input(TaskInput):
    image: Annotated[Image, Batched]
    config: Config = Field(default_factory=Config, description="Options of the model.")


class TextObject(Part):
    """A piece of text: a line, or a part of a line."""

    text: str
    score: Score | None = Field(description="0 to 1; null if the model gives none.")
    box: Box = Field(description="Upright rectangle around it, in pixels of the oriented image.")


class Output(TaskOutput):
    text: str = Field(
        description="The whole text in reading order: lines from top to bottom, separated by newlines; "
        "the pieces of a line from left to right, separated by spaces; columns of prose one after the "
        "other, if the model recognises them. Empty if the image holds no text."
    )
    objects: list[TextObject] = Field(description="The pieces, in the same order.")


LINES = (
    "Opening hours",
    "Monday to Friday 9-17",
    "Total 27.50",
    "The mill is closed",
    "No. 42",
    "Please ring twice, then wait at the gate",
)


SIGN = base64.b64encode((files("modelmill_tasks") / "data" / "opening_hours.png").read_bytes()).decode()
"""The first two lines, as ``rendered`` makes them in letters of 24 pixels."""


def rendered(lines: list[str], size: int) -> str:
    """A PNG of black lines on white, letters of about ``size`` pixels, as a data URL."""
    from PIL import Image as Pillow
    from PIL import ImageDraw, ImageFont

    font = ImageFont.load_default(size)
    width = int(max(font.getlength(line) for line in lines)) + 2 * size
    height = max(int((1.8 * len(lines) + 1) * size), width // 2)
    page = Pillow.new("L", (width, height), 255)
    draw = ImageDraw.Draw(page)
    for index, line in enumerate(lines):
        draw.text((size, int((0.6 + 1.8 * index) * size)), line, font=font, fill=0)
    buffer = io.BytesIO()
    page.save(buffer, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def samples(count: int) -> list[dict[str, Any]]:
    """Pages of one to four lines, in letters of several sizes."""
    return [
        {
            "image": rendered(
                [LINES[(index + offset) % len(LINES)] for offset in range(1 + index % 4)], 16 + index % 5 * 5
            ),
            "config": {},
        }
        for index in range(count)
    ]


TASK = Task(
    name="optical-character-recognition",
    group=TaskGroup.IMAGES,
    summary="What is written in the image, and where?",
    input=Input,
    output=Output,
    example=Example(
        input={"image": f"data:image/png;base64,{SIGN}", "config": {"languages": ["en"]}},
        output={
            "text": "Opening hours\nMonday to Friday 9-17",
            "objects": [
                {
                    "text": "Opening hours",
                    "score": 0.9997,
                    "box": {"left": 21.25, "top": 14.75, "width": 172.75, "height": 32.0},
                },
                {
                    "text": "Monday to Friday 9-17",
                    "score": 0.9999,
                    "box": {"left": 20.0, "top": 57.0, "width": 252.75, "height": 34.75},
                },
            ],
        },
        model="rapidocr",
    ),
    samples=samples,
)
