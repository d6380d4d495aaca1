from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from PIL import Image

from modelmill_backends.contract import LoadContext
from modelmill_backends.onnx.efficientnet_lite import load_network, same_padding
from modelmill_backends.onnx.imagenet import labels, pixels
from modelmill_backends.source import locate
from tests.fixtures.photos import data_url, photo
from tests.support.models import OpenModel

TASK = "image-classification"


def test_onnx_equals_the_torch_network(open_model: OpenModel, context_of: Callable[..., LoadContext]) -> None:
    network = load_network(locate(context_of("efficientnet-lite0").entry))
    batch = np.stack([pixels(photo(name)) for name in ("chelsea", "coffee", "rocket")])
    with torch.inference_mode():
        wanted = network(torch.from_numpy(batch)).softmax(-1).numpy()

    got = open_model("efficientnet-lite0").runner(TASK).weights.probabilities(list(batch))

    np.testing.assert_allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding"),
    [(224, 3, 2, (0, 1)), (112, 3, 1, (1, 1)), (56, 5, 2, (1, 2)), (7, 5, 1, (2, 2)), (7, 1, 1, (0, 0))],
)
def test_padding_is_that_of_tensorflow(size: int, kernel: int, stride: int, padding: tuple[int, int]) -> None:
    assert same_padding(size, kernel, stride) == padding


def test_labels_are_imagenets_thousand() -> None:
    assert len(labels()) == 1000
    assert (labels()[0], labels()[281], labels()[999]) == ("tench", "tabby", "toilet tissue")


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("coffee", "espresso"),
        ("camera", "tripod"),
        ("china.jpg", "palace"),
        ("flower.jpg", "daisy"),
        ("stereo_motorcycle", "moped"),
    ],
)
def test_photos_get_a_fitting_label_first(open_model: OpenModel, name: str, label: str) -> None:
    (output,) = open_model("efficientnet-lite0").answer(TASK, {"image": data_url(photo(name), "PNG")})

    assert output.model_dump()["classes"][0]["label"] == label


def test_top_k_is_best_first_and_bounded_by_the_labels(open_model: OpenModel) -> None:
    image = data_url(photo("coffee"))

    few, all_of_them = open_model("efficientnet-lite0").answer(
        TASK, {"image": image, "config": {"top_k": 3}}, {"image": image, "config": {"top_k": 1000}}
    )

    scores = [entry["score"] for entry in all_of_them.model_dump()["classes"]]
    assert scores == sorted(scores, reverse=True)
    assert sum(scores) == pytest.approx(1)
    assert few.model_dump()["classes"] == all_of_them.model_dump()["classes"][:3]


def test_a_batch_gives_each_image_what_it_gets_alone(open_model: OpenModel) -> None:
    model = open_model("efficientnet-lite0")
    items = [{"image": data_url(photo(name))} for name in ("chelsea", "rocket", "retina")]

    together = model.answer(TASK, *items)

    for item, output in zip(items, together, strict=True):
        alone = model.answer(TASK, item)[0].model_dump()["classes"]
        assert [entry["label"] for entry in output.model_dump()["classes"]] == [e["label"] for e in alone]
        assert [entry["score"] for entry in output.model_dump()["classes"]] == pytest.approx(
            [entry["score"] for entry in alone], abs=1e-4
        )


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (3, 2)])
def test_odd_sizes_are_no_trouble(size: tuple[int, int]) -> None:
    assert pixels(Image.new("RGB", size)).shape == (3, 224, 224)
