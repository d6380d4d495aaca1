from __future__ import annotations

import json
from typing import Any

import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_tasks.registry import find_task
from modelmill_tasks.text_to_image import Input

TASK = find_task("text-to-image")


def parsed(config: dict[str, Any]) -> Input:
    request = TASK.parse(json.dumps({"prompt": "a mill", "config": config}))
    assert isinstance(request, Input)
    return request


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"num_images": 0}, "config.num_images"),
        ({"num_images": 9}, "config.num_images"),
        ({"seed": -1}, "config.seed"),
        ({"seed": 2**63}, "config.seed"),
        ({"seed": 1.5}, "config.seed"),
        ({"width": 500}, "config.width"),
        ({"height": 56}, "config.height"),
        ({"height": 2056}, "config.height"),
        ({"aspect_ratio": "16x9"}, "config.aspect_ratio"),
        ({"aspect_ratio": "0:1"}, "config.aspect_ratio"),
        ({"aspect_ratio": "5:1"}, "config.aspect_ratio"),
        ({"aspect_ratio": "1:1", "width": 512}, "config"),
        ({"aspect_ratio": "1:1", "height": 512}, "config"),
        ({"num_inference_steps": 0}, "config.num_inference_steps"),
        ({"num_inference_steps": 201}, "config.num_inference_steps"),
        ({"guidance_scale": -1}, "config.guidance_scale"),
        ({"guidance_scale": 51}, "config.guidance_scale"),
        ({"negative_prompt": ""}, "config.negative_prompt"),
        ({"output_format": "gif"}, "config.output_format"),
        ({"samples": 2}, "config.samples"),
    ],
)
def test_what_is_wrong_is_named(config: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelmillError) as caught:
        parsed(config)

    assert caught.value.code is ErrorCode.INVALID_INPUT
    assert [error.field for error in caught.value.fields] == [field]


def test_a_size_and_a_ratio_exclude_each_other_in_words() -> None:
    with pytest.raises(ModelmillError, match="give aspect_ratio, or width and height, not both"):
        parsed({"aspect_ratio": "16:9", "width": 512, "height": 512})


@pytest.mark.parametrize("ratio", ["1:4", "4:1", "16:9", "1920:1080"])
def test_ratios_up_to_one_to_four_are_taken(ratio: str) -> None:
    assert parsed({"aspect_ratio": ratio}).config.aspect_ratio == ratio


def test_without_a_config_one_png_is_made() -> None:
    config = parsed({}).config

    assert (config.num_images, config.output_format, config.seed) == (1, "png", None)


def test_a_prompt_is_needed_and_may_not_be_empty() -> None:
    for body in ({}, {"prompt": ""}):
        with pytest.raises(ModelmillError) as caught:
            TASK.parse(json.dumps(body))
        assert [error.field for error in caught.value.fields] == ["prompt"]
