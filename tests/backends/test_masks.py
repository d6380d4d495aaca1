"""Run lengths against pycocotools, boxes and pictures of masks."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from pycocotools import mask as coco

from modelmill_backends.shared.masks import decode_rle, encode_rle, png_map, png_mask, tight_box

# A warning of pycocotools about numpy's arrays.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12))


def by_coco(text: str, height: int, width: int) -> Any:
    counts = [int(count) for count in text.split(",")]
    return coco.decode(coco.frPyObjects({"counts": counts, "size": [height, width]}, height, width)) == 1


def opened(url: str) -> Any:
    header, _, data = url.partition(",")
    assert header == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


@settings(max_examples=200, deadline=None)
@given(masks)
def test_a_mask_comes_back_from_its_run_lengths_here_and_in_pycocotools(mask: Any) -> None:
    text = encode_rle(mask)

    assert (decode_rle(text, mask.shape) == mask).all()
    assert (by_coco(text, *mask.shape) == mask).all()


@settings(max_examples=100, deadline=None)
@given(masks)
def test_a_box_is_the_one_of_pycocotools(mask: Any) -> None:
    box = tight_box(mask)

    expected = coco.toBbox(coco.encode(np.asfortranarray(mask.astype(np.uint8)))).tolist()
    assert [box.left, box.top, box.width, box.height] == expected


@pytest.mark.parametrize(
    ("mask", "text"),
    [
        ([[0, 0, 0], [0, 0, 0]], "6"),
        ([[1, 1, 1], [1, 1, 1]], "0,6"),
        ([[1, 0, 0], [0, 0, 0]], "0,1,5"),
        ([[0, 0, 0], [0, 0, 1]], "5,1"),
        ([[0, 1, 1], [0, 0, 1]], "2,1,1,2"),
        ([[0]], "1"),
        ([[1]], "0,1"),
    ],
)
def test_run_lengths_go_down_the_columns_and_begin_with_zeros(mask: Any, text: str) -> None:
    pixels = np.asarray(mask, dtype=bool)

    assert encode_rle(pixels) == text
    assert (decode_rle(text, pixels.shape) == pixels).all()


def test_a_mask_of_no_pixels_has_no_run() -> None:
    assert encode_rle(np.zeros((0, 5), dtype=bool)) == "0"
    assert decode_rle("0", (0, 5)).shape == (0, 5)


@pytest.mark.parametrize("text", ["5", "0,7", "3,-1,4"])
def test_run_lengths_that_do_not_fill_the_image_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="cover"):
        decode_rle(text, (2, 3))


def test_a_mask_that_is_not_contiguous_is_read_right() -> None:
    mask = np.arange(24).reshape(4, 6) % 5 == 0

    assert (decode_rle(encode_rle(mask[::-1, ::2]), (4, 3)) == mask[::-1, ::2]).all()


def test_the_box_of_an_empty_mask_is_empty() -> None:
    assert tight_box(np.zeros((4, 5), dtype=bool)).model_dump() == {
        "left": 0,
        "top": 0,
        "width": 0,
        "height": 0,
    }


def test_a_picture_of_a_mask_is_black_and_white_in_one_channel() -> None:
    mask = np.arange(20).reshape(4, 5) % 3 == 0

    picture = opened(png_mask(mask))

    assert (picture.mode, picture.size) == ("L", (5, 4))
    assert (np.asarray(picture) == np.where(mask, 255, 0)).all()


def test_values_come_back_from_a_map_within_half_a_step() -> None:
    values = np.random.default_rng(0).normal(3, 10, (7, 9)).astype(np.float32)

    url, low, high = png_map(values)
    picture = opened(url)

    assert picture.mode == "I;16"
    step = (high - low) / 65535
    assert np.abs(low + np.asarray(picture, dtype=np.float64) * step - values).max() <= step * 0.51
    assert (low, high) == (values.min(), values.max())


def test_a_map_of_one_value_is_black() -> None:
    url, low, high = png_map(np.full((3, 4), 2.5, dtype=np.float32))

    assert (low, high) == (2.5, 2.5)
    assert not np.asarray(opened(url)).any()
