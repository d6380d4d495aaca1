"""Steps of image processors, read from their files or from the library's objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelmill_backends.shared.image_settings import UnknownStepsError, image_settings

HALF: dict[str, Any] = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
CLIP = {**HALF, "image_processor_type": "CLIPImageProcessor"}
VIT = {**HALF, "image_processor_type": "ViTImageProcessor"}


def test_each_channel_has_its_own_mean_and_deviation() -> None:
    settings = image_settings({**CLIP, "image_mean": [0.0, 0.5, 1.0], "image_std": [1.0, 0.5, 0.25]})

    red, green, blue = settings.pixels(Image.new("RGB", (10, 10), (255, 255, 51)))

    assert red == pytest.approx(1.0)
    assert green == pytest.approx(1.0)
    assert blue == pytest.approx((0.2 - 1) / 0.25)


def test_without_rescaling_or_normalising_the_values_stay() -> None:
    settings = image_settings({**VIT, "do_rescale": False, "do_normalize": False})

    assert settings.pixels(Image.new("RGB", (10, 10), (1, 2, 3)))[:, 0, 0].tolist() == [1, 2, 3]


def test_one_mean_may_stand_for_all_channels() -> None:
    settings = image_settings({**VIT, "image_mean": 0.5, "image_std": 0.25})

    assert settings.pixels(Image.new("RGB", (10, 10), "white")) == pytest.approx(2.0)


def test_cropped_images_are_bytes_with_channels_last() -> None:
    cropped = image_settings({**CLIP, "size": 20, "crop_size": {"height": 10, "width": 16}}).cropped(
        Image.new("RGB", (50, 40), (1, 2, 3))
    )

    assert cropped.dtype == np.uint8
    assert cropped.shape == (10, 16, 3)
    assert cropped[0, 0].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("config", "shortest_edge", "size", "crop"),
    [
        pytest.param(CLIP, 224, None, (224, 224), id="CLIP crops by default"),
        pytest.param({**CLIP, "do_center_crop": False, "size": 32}, 32, None, None, id="unless told"),
        pytest.param(VIT, None, (224, 224), None, id="ViT does not"),
        pytest.param({**VIT, "crop_size": 96}, None, (224, 224), None, id="nor by a size for it"),
        pytest.param(
            {**VIT, "crop_size": 96, "do_center_crop": True, "size": 99},
            None,
            (99, 99),
            (96, 96),
            id="told to",
        ),
        pytest.param({**VIT, "do_resize": False}, None, None, None, id="no resizing"),
    ],
)
def test_sizes_are_read_as_the_library_does(
    config: dict[str, Any], shortest_edge: int | None, size: Any, crop: Any
) -> None:
    import transformers

    settings = image_settings(config)

    assert (settings.shortest_edge, settings.size, settings.crop) == (shortest_edge, size, crop)
    theirs = getattr(transformers, config["image_processor_type"] + "Pil").from_dict(config)
    assert image_settings(theirs.to_dict()) == settings


@pytest.mark.parametrize(
    ("config", "resample"), [(CLIP, 3), (VIT, 2), ({**CLIP, "resample": 2}, 2), ({**VIT, "resample": 0}, 0)]
)
def test_the_filter_is_the_files_or_else_the_classs(config: dict[str, Any], resample: int) -> None:
    import transformers

    assert image_settings(config).resample == resample
    theirs = getattr(transformers, config["image_processor_type"] + "Pil").from_dict(config)
    assert theirs.resample == resample


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ({**HALF, "image_processor_type": "Siglip2ImageProcessor"}, "Siglip2ImageProcessor; supported are"),
        ({**VIT, "do_pad": True}, "padding"),
        ({**VIT, "size": {"shortest_edge": 20, "longest_edge": 30}}, "a size by shortest_edge, longest_edge"),
        ({**VIT, "size": {"longest_edge": 30}}, "a size by longest_edge"),
    ],
)
def test_other_steps_are_refused(config: dict[str, Any], reason: str) -> None:
    with pytest.raises(UnknownStepsError, match=reason):
        image_settings(config)
