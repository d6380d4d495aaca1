"""A specimen: what it takes to prove a runner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelmill.catalogue import ModelEntry

ENTRY_POINT_GROUP = "modelmill.specimens"
"""Entry points that name a sequence of specimens."""

Inputs = Sequence[Mapping[str, Any]]
"""Items, as the JSON of a plain job's request."""


@dataclass(frozen=True, slots=True)
class Specimen:
    """A small model that a runner is proved on.

    Attributes:
        name: Its own name among all specimens, ``tiny-bert``. The same ``build`` may serve several.
        task: What it is asked.
        build: Makes the model, with seeded random weights, in an empty folder, and gives its catalogue entry
            (any name: the suite gives it ``name``). Real weights: ignore the folder, give the entry.
        inputs: What to ask; at least three items, the more unequal the better. The task's samples when left
            out.
        bad_input: An item that passes the contract and that the runner has to refuse. When left out, a
            truncated file for tasks on media, and none for others.
        reference: The independent path: the folder and items → their results, as dicts. Keys that it leaves
            out are not compared. Without it the suite cannot tell a wrong answer from a right one.
        tolerance: How far numbers may be apart.
    """

    name: str
    task: str
    build: Callable[[Path], ModelEntry]
    inputs: Inputs | None = None
    bad_input: Mapping[str, Any] | None = None
    reference: Callable[[Path, Inputs], Sequence[Mapping[str, Any]]] | None = None
    tolerance: float = 1e-4
