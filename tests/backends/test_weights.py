"""Weights that are refused because their answers would be meaningless."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from tests.support.models import folder_entry


def refused(context: LoadContext) -> str:
    with pytest.raises(ModelmillError) as caught:
        LoadedModel(context).load()
    assert caught.value.code == ErrorCode.MODEL_LOAD_FAILED
    return caught.value.message


def test_weights_without_the_head_of_the_task_are_refused(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext]
) -> None:
    # The library would fill the missing layer at random, and every image would get a label.
    entry = folder_entry(tiny("clip"), "image-classification")
    said = refused(context_of(entry))
    assert "were not made for this task" in said
    assert "CLIPForImageClassification needs classifier." in said


def test_an_encoder_that_was_saved_without_a_pooler_still_loads(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext]
) -> None:
    entry = folder_entry(tiny("vit"), "image-embedding")
    with_head = LoadedModel(context_of(entry)).load()
    with_head.close()


def test_weights_that_answer_rightly_only_with_their_own_code_are_refused_without_it(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext]
) -> None:
    entry = folder_entry(tiny("encoder"), "text-embedding", options={"needs_remote_code": True})
    assert "set options.trust_remote_code = true if you trust it" in refused(context_of(entry))
