"""Warnings of the tasks that need detail or shapes, on pictures that are very large or very long."""

from __future__ import annotations

from typing import Any

import pytest
from PIL import Image

from modelmill_backends.onnx.faces import fitted
from modelmill_backends.onnx.object_detection import letterboxed
from modelmill_backends.shared.detail import warn_of_scaling
from modelmill_backends.transformers.regions import _seen_size
from modelmill_tasks.item_warnings import ItemWarning, WarningCode, collecting


def codes(act: Any, *arguments: Any) -> list[WarningCode]:
    found: list[ItemWarning] = []
    with collecting(found):
        act(*arguments)
    return [warning.code for warning in found]


@pytest.mark.parametrize(
    ("size", "seen", "expected"),
    [
        ((640, 480), (640, 480), []),
        ((100, 100), (640, 640), []),
        ((2400, 1800), (640, 480), []),
        ((4032, 3024), (800, 600), [WarningCode.IMAGE_SCALED_DOWN]),
        ((1600, 800), (512, 512), []),
        ((1600, 500), (512, 512), [WarningCode.IMAGE_STRETCHED]),
        ((8000, 500), (512, 512), [WarningCode.IMAGE_SCALED_DOWN, WarningCode.IMAGE_STRETCHED]),
    ],
)
def test_what_is_scaled_far_down_or_stretched_is_told(
    size: tuple[int, int], seen: tuple[int, int], expected: list[WarningCode]
) -> None:
    assert codes(warn_of_scaling, size, seen) == expected


def test_the_sentence_has_the_figures() -> None:
    found: list[ItemWarning] = []
    with collecting(found):
        warn_of_scaling((8000, 6000), (640, 480))

    assert [warning.message for warning in found] == [
        "The model saw the picture at 640 × 480 of its 8000 × 6000 pixels; it may miss small things."
    ]


def test_detectors_that_keep_the_proportions_warn_of_small_scales_only() -> None:
    small, wide = Image.new("RGB", (1280, 720)), Image.new("RGB", (6400, 640))

    assert codes(letterboxed, small, 640) == codes(fitted, small, (640, 640)) == []
    assert codes(letterboxed, wide, 640) == [WarningCode.IMAGE_SCALED_DOWN]
    assert codes(fitted, wide, (640, 640)) == [WarningCode.IMAGE_SCALED_DOWN]


def test_padding_is_no_part_of_what_a_model_sees() -> None:
    import numpy as np

    pixels = np.zeros((3, 800, 800))
    mask = np.zeros((800, 800), dtype=int)
    mask[:400] = 1

    class Padding:
        do_pad = True

    assert _seen_size(None, {"pixel_values": pixels, "pixel_mask": mask}, (1600, 800)) == (800, 400)
    assert _seen_size(Padding(), {"pixel_values": pixels}, (1600, 800)) == (800, 400)
    assert _seen_size(None, {"pixel_values": pixels}, (1600, 800)) == (800, 800)
