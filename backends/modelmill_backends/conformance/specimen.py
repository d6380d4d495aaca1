"""A specimen: a small model with inputs that proves a runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmill.catalogue import ModelEntry

ENTRY_POINT_GROUP = "modelmill.specimens"
"""Group of the entry points that name a sequence of specimens."""

Inputs = Sequence[Mapping[str, Any]]
"""Items in the JSON form of a plain job's request."""


@dataclass(frozen=True, slots=True)
class Specimen:
    """A small model with inputs that proves a runner.

    Attributes:
        name: A unique name, such as ``tiny-bert``. Several specimens may share a ``build``.
        task: The task that it answers.
        build: Makes the model in an empty folder, with seeded random weights, and returns its catalogue
            entry. The checks replace the entry's name by ``name``. For real weights: ignore the folder and
            return the entry.
        inputs: At least three items, as different as possible. Default: the task's samples.
        bad_input: An item that passes the contract but that the runner must refuse. Default: a truncated
            file for tasks on media, no item for others.
        reference: Computes the expected results without the runner: takes the folder and the items, returns
            one dict per item. Keys that it leaves out are not compared. Without it, the checks cannot tell a
            wrong answer from a right one.
        tolerance: The largest allowed difference of two numbers.
    """

    name: str
    task: str
    build: Callable[[Path], ModelEntry]
    inputs: Inputs | None = None
    bad_input: Mapping[str, Any] | None = None
    reference: Callable[[Path, Inputs], Sequence[Mapping[str, Any]]] | None = None
    tolerance: float = 1e-4
