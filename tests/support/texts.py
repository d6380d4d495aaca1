"""Questions to a loaded model of texts."""

from __future__ import annotations

from typing import Any

import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.loader import LoadedModel

LONG = "a " * 100_000
"""A text with so many tokens."""


def ask(model: LoadedModel, task: str, *items: dict[str, Any]) -> list[dict[str, Any]]:
    return [output.model_dump() for output in model.answer(task, *items)]


def refusal(model: LoadedModel, task: str, item: dict[str, Any]) -> ModelmillError:
    with pytest.raises(ModelmillError) as caught:
        model.answer(task, item)
    assert caught.value.code is ErrorCode.INVALID_INPUT
    return caught.value
