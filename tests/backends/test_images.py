"""The device inputs of the runners on ``transformers``, compared with the library's own processors."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_backends.shared.image_settings import read_image_settings
from tests.fixtures.photos import data_url, photo
from tests.support.models import ZERO_SHOT, OpenModel, folder_entry

CLASSIFICATION = "image-classification"
TASKS = {"clip": ZERO_SHOT, "siglip": ZERO_SHOT, "vit": CLASSIFICATION}
SIZES = [(640, 426), (426, 640), (31, 33), (333, 77), (32, 32), (65, 32), (1, 1), (3, 5), (2, 150)]
"""Width and height: landscape, portrait, odd, narrow, of the model's size, and tiny."""


def picture(size: tuple[int, int]) -> Any:
    """A photo with this size. Each pixel in its middle has another colour, so a shift by one pixel shows."""
    image = photo("chelsea").resize(size)
    noise = np.random.default_rng(size).integers(0, 256, (size[1] // 2, size[0] // 2, 3), dtype=np.uint8)
    if noise.size:
        image.paste(Image.fromarray(noise), (size[0] // 4, size[1] // 4))
    return image


def original(folder: Path) -> Callable[[Any], Any]:
    """The library's processor, loaded from the folder."""
    from transformers import AutoImageProcessor

    processor: Any = AutoImageProcessor
    own = processor.from_pretrained(folder)
    return lambda image: own(images=image, return_tensors="pt")["pixel_values"]


def direct(model: LoadedModel, task: str, pixels: Any) -> Any:
    """The model's result for pixel values, without the runner's code."""
    network = model.runner(task).weights.model
    with torch.inference_mode():
        if task == CLASSIFICATION:
            return torch.softmax(network(pixel_values=pixels).logits.float(), -1).numpy()
        features = network.get_image_features(pixel_values=pixels)
        return getattr(features, "pooler_output", features).float().numpy()


def raw(model: LoadedModel, task: str, images: list[Any]) -> Any:
    """The runner's result for images in one batch: vectors or probabilities."""
    runner: Any = model.runner(task)
    if task == CLASSIFICATION:
        contract = [{"image": data_url(image, "PNG")} for image in images]
        outputs = [output.model_dump()["classes"] for output in model.answer(task, *contract)]
        labels = list(runner.weights.model.config.id2label.values())
        scores = [{entry["label"]: entry["score"] for entry in classes} for classes in outputs]
        return np.array([[score[label] for label in labels] for score in scores])
    return runner.encode_images([runner.pixels(image) for image in images])


@pytest.mark.parametrize("kind", TASKS)
def test_a_batch_of_many_sizes_equals_the_librarys_processor_and_the_model(
    open_model: OpenModel, tiny: Callable[..., Path], kind: str
) -> None:
    folder, task = tiny(kind), TASKS[kind]
    model, processed = open_model(folder_entry(folder, task)), original(folder)
    images = [picture(size) for size in SIZES]

    got = raw(model, task, images)

    wanted = np.concatenate([direct(model, task, processed(image)) for image in images])
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)
    # Otherwise the comparison could not tell one image from another.
    assert np.ptp(wanted, axis=0).max() > 0.05


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("kind", TASKS)
def test_own_steps_equal_the_librarys(tiny: Callable[..., Path], kind: str, size: tuple[int, int]) -> None:
    folder = tiny(kind)

    got = read_image_settings(folder_entry(folder, TASKS[kind]), folder).pixels(picture(size))

    np.testing.assert_allclose(got, original(folder)(picture(size))[0].numpy(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("kind", TASKS)
def test_images_stay_bytes_until_they_are_on_the_device(
    open_model: OpenModel, tiny: Callable[..., Path], kind: str
) -> None:
    runner = open_model(folder_entry(tiny(kind), TASKS[kind])).runner(TASKS[kind])
    item: Any = {"image": data_url(picture((50, 40)), "PNG"), "classes": ["a"]}

    prepared = runner.preprocess(_input(TASKS[kind], item))

    assert prepared.data["pixel_values"].dtype == np.uint8
    assert prepared.cost == 1


@pytest.mark.parametrize("kind", TASKS)
def test_the_models_type_is_that_of_its_inputs(
    context_of: Callable[..., LoadContext],
    tiny: Callable[..., Path],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder, task = tiny(kind), TASKS[kind]
    model = LoadedModel(context_of(folder_entry(folder, task, options={"dtype": "bfloat16"}))).load()
    network: Any = model.runner(task).weights.model
    name = "forward" if task == CLASSIFICATION else "get_image_features"
    original_call, seen = getattr(network, name), []

    def watching(pixel_values: Any) -> Any:
        seen.append(pixel_values)
        return original_call(pixel_values=pixel_values)

    monkeypatch.setattr(network, name, watching)
    raw(model, task, [picture((65, 32))])

    assert seen[0].dtype == torch.bfloat16
    wanted = original(folder)(picture((65, 32)))
    # Half a step of eight bits, for values below 4.
    torch.testing.assert_close(seen[0].float(), wanted, atol=2**-7 + 1e-4, rtol=0)


@pytest.fixture(params=["other steps", "code of its own"])
def unknown(request: pytest.FixtureRequest, tiny: Callable[..., Path], tmp_path: Path) -> Path:
    """A classifier with an unknown processor."""
    folder = tmp_path / "model"
    shutil.copytree(tiny("vit"), folder)
    file = folder / "preprocessor_config.json"
    config = json.loads(file.read_text())
    if request.param == "other steps":
        config["image_processor_type"] = "BlipImageProcessor"
    else:
        # The class has a known name, but turns every image upside down.
        config["auto_map"] = {"AutoImageProcessor": "own.ViTImageProcessor"}
        (folder / "own.py").write_text(
            "from transformers import ViTImageProcessorPil\n\n\n"
            "class ViTImageProcessor(ViTImageProcessorPil):\n"
            "    def rescale(self, image, scale, **kwargs):\n"
            "        return super().rescale(image[:, ::-1], scale, **kwargs)\n"
        )
    file.write_text(json.dumps(config))
    return folder


def test_a_processor_that_is_not_known_does_its_own_work(
    context_of: Callable[..., LoadContext], unknown: Path
) -> None:
    from transformers import AutoImageProcessor

    entry = folder_entry(unknown, CLASSIFICATION, options={"trust_remote_code": True})
    model = LoadedModel(context_of(entry)).load()
    runner = model.runner(CLASSIFICATION)
    images = [picture(size) for size in SIZES[:3]]
    auto: Any = AutoImageProcessor
    own = auto.from_pretrained(unknown, trust_remote_code=True)

    got = raw(model, CLASSIFICATION, images)

    processed = [own(images=image, return_tensors="pt")["pixel_values"] for image in images]
    wanted = np.concatenate([direct(model, CLASSIFICATION, pixels) for pixels in processed])
    np.testing.assert_allclose(got, wanted, atol=1e-5, rtol=0)
    item = _input(CLASSIFICATION, {"image": data_url(images[0])})
    assert runner.preprocess(item).data["pixel_values"].dtype == np.float32


@pytest.fixture(scope="module")
def shapeless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier that takes images of any shape: it scales only their short side."""
    from transformers import ResNetConfig, ResNetForImageClassification, ViTImageProcessorPil

    folder = tmp_path_factory.mktemp("resnet")
    torch.manual_seed(4)
    labels = dict(enumerate(["cat", "dog", "cup", "rocket"]))
    config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", id2label=labels
    )
    network = ResNetForImageClassification(config)
    network.save_pretrained(folder)
    ViTImageProcessorPil(size={"shortest_edge": 24}).save_pretrained(folder)
    return folder


def test_images_of_different_shapes_may_share_a_batch(open_model: OpenModel, shapeless: Path) -> None:
    model, processed = open_model(folder_entry(shapeless, CLASSIFICATION)), original(shapeless)
    images = [picture(size) for size in [(60, 40), (40, 60), (120, 80), (30, 30), (41, 60), (20, 30)]]

    got = raw(model, CLASSIFICATION, images)

    wanted = np.concatenate([direct(model, CLASSIFICATION, processed(image)) for image in images])
    np.testing.assert_allclose(got, wanted, atol=1e-4, rtol=0)


def test_images_of_one_shape_share_a_pass(
    open_model: OpenModel, shapeless: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = open_model(folder_entry(shapeless, CLASSIFICATION))
    weights: Any = model.runner(CLASSIFICATION).weights
    shapes: list[tuple[int, ...]] = []
    network = weights.model.forward

    def watching(**inputs: Any) -> Any:
        shapes.append(tuple(inputs["pixel_values"].shape))
        return network(**inputs)

    monkeypatch.setattr(weights.model, "forward", watching)
    raw(model, CLASSIFICATION, [picture(size) for size in [(60, 40), (40, 60), (120, 80)]])

    assert shapes == [(2, 3, 24, 36), (1, 3, 36, 24)]


def test_an_image_too_narrow_to_scale_is_refused(open_model: OpenModel, shapeless: Path) -> None:
    with pytest.raises(ModelmillError, match="times as long as wide") as caught:
        raw(open_model(folder_entry(shapeless, CLASSIFICATION)), CLASSIFICATION, [Image.new("RGB", (1, 101))])

    assert caught.value.code is ErrorCode.INVALID_MEDIA


def _input(task: str, item: dict[str, Any]) -> Any:
    from modelmill_tasks.registry import find_task

    fields = find_task(task).input.model_fields
    return find_task(task).input.model_validate({name: item[name] for name in item if name in fields})
