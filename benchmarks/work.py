"""The work that every measured system does: the same function behind each of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, cast

from pydantic import BaseModel

Run = Callable[[Sequence[dict[str, Any]]], list[list[float]]]
"""Inputs, each with ``image`` (a data URL) and ``classes``, to the probabilities of each input's classes."""


class Job(BaseModel):
    """One job's input, as each peer's HTTP front end checks it."""

    image: str
    classes: list[str]


NOOP = "noop"
TASK = "zero-shot-image-classification"
MAX_BATCH = {NOOP: 64}
"""Inputs in one batch, by name of the work, for the systems that batch."""
MAX_BATCH_OF_A_MODEL = 8


def load(name: str) -> Run:
    """The function of that name, with its weights in memory.

    Args:
        name: ``noop`` for uniform probabilities with nothing decoded, which needs no package at all;
            otherwise a model of the catalogue that answers zero-shot image classification.
    """
    if name == NOOP:
        return _uniform
    from modelmill_backends.loader import load as load_model

    model = load_model(name)

    def run(inputs: Sequence[dict[str, Any]]) -> list[list[float]]:
        outputs = cast("list[Any]", model.answer(TASK, *inputs))
        return [output.probabilities for output in outputs]

    return run


@cache
def served() -> Run:
    """The function that this process of a peer serves, loaded once."""
    return load(os.environ["PEER_WORK"])


def max_batch(name: str) -> int:
    """How many inputs one batch of that work may hold."""
    return MAX_BATCH.get(name, MAX_BATCH_OF_A_MODEL)


def _uniform(inputs: Sequence[dict[str, Any]]) -> list[list[float]]:
    return [[1 / len(item["classes"])] * len(item["classes"]) for item in inputs]
