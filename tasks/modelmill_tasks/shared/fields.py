"""Field types that several tasks share, so that the same thing has the same name and bounds everywhere."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator

from modelmill_tasks.contract import TaskConfig

MAX_TEXT = 1_000_000
"""Characters of one text. Each task says whether text beyond the model's window is cut off or refused."""
MAX_CLASSES = 1000
"""Classes, or sentences, that one item may name."""

Text = Annotated[str, Field(min_length=1, max_length=MAX_TEXT)]

ClassName = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=500)]
Classes = Annotated[list[ClassName], Field(min_length=1, max_length=MAX_CLASSES)]

Score = Annotated[float, Field(ge=0, le=1)]

TopK = Annotated[int, Field(ge=1, le=1000)]

Created = Annotated[
    int,
    Field(default_factory=lambda: int(time.time()), description="Time of the answer, in Unix seconds."),
]
"""A field of every generated result."""


class Part(BaseModel):
    """Base class of objects inside requests and results."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Label(Part):
    """A label, and how sure the model is of it."""

    label: str
    score: Score | None = Field(description="0 to 1; null if the model gives none.")


class ZeroShotConfig(TaskConfig):
    """Options of a classification among the caller's own classes."""

    hypothesis_template: str | None = Field(
        None,
        max_length=500,
        description="Sentence around each class, with {} for its name; the model's own if not set.",
        examples=["a photo of a {}"],
    )
    multi_label: bool | None = Field(
        None,
        description="false: the classes exclude each other and sum to 1. true: each is judged by itself. "
        "The model's own way if not set.",
    )

    @field_validator("hypothesis_template")
    @classmethod
    def _has_a_place(cls, value: str | None) -> str | None:
        if value is not None and value.count("{}") != 1:
            raise ValueError("must contain {} exactly once, where the class goes")
        return value


class EmbeddingConfig(TaskConfig):
    """Options of an embedding."""

    normalize: bool | None = Field(
        None, description="Scale the vector to length 1; the model's own way if not set."
    )
