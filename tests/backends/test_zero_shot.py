"""CLIP and SigLIP, in both runtimes, compared with the pipeline of ``transformers``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_backends.onnx.clip import ClipRunner
from modelmill_backends.shared.image_settings import read_image_settings
from modelmill_backends.shared.text_vectors import TextVectors
from modelmill_backends.shared.zero_shot import Scoring
from tests.fixtures.photos import data_url, photo
from tests.support.models import ZERO_SHOT, OpenModel, folder_entry

CLASSES = ["cat", "a dog on a sofa", "rocket"]
PHOTOS = ["chelsea", "rocket", "retina", "stereo_motorcycle"]
TEMPLATES = [None, "a photo of a {}", "{}"]


@pytest.fixture(scope="session", params=["clip", "siglip"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session", params=["transformers", "onnx"])
def model(
    request: pytest.FixtureRequest,
    kind: str,
    open_model: OpenModel,
    tiny: Callable[..., Path],
    exported: Callable[[str], Path],
) -> LoadedModel:
    folder = tiny(kind) if request.param == "transformers" else exported(kind)
    return open_model(folder_entry(folder, ZERO_SHOT, request.param))


@pytest.fixture(scope="session")
def pipeline(kind: str, tiny: Callable[..., Path]) -> Any:
    import transformers

    make: Any = transformers.pipeline  # the overloads do not take a variable
    return make(ZERO_SHOT, model=str(tiny(kind)), device="cpu")


def probabilities(model: LoadedModel, image: Any, classes: list[str], **config: Any) -> list[float]:
    item = {"image": data_url(image, "PNG"), "classes": classes, "config": config}
    found: list[float] = model.answer(ZERO_SHOT, item)[0].model_dump()["probabilities"]
    return found


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("name", PHOTOS)
def test_equals_the_pipeline(model: LoadedModel, pipeline: Any, name: str, template: str | None) -> None:
    config = {} if template is None else {"hypothesis_template": template}
    found = {
        answer["label"]: answer["score"]
        for answer in pipeline(photo(name), candidate_labels=CLASSES, **config)
    }

    got = probabilities(model, photo(name), CLASSES, **config)

    assert got == pytest.approx([found[label] for label in CLASSES], abs=1e-4)


def test_a_batch_gives_each_item_what_it_gets_alone(model: LoadedModel) -> None:
    items: list[dict[str, Any]] = [
        {"image": data_url(photo("chelsea"), "PNG"), "classes": ["cat", "dog"]},
        {"image": data_url(photo("rocket")), "classes": ["a much longer class than the others", "x", "y"]},
        {"image": data_url(photo("coffee")), "classes": ["cup"], "config": {"multi_label": True}},
        {"image": data_url(photo("retina")), "classes": ["cat"], "config": {"hypothesis_template": "{}"}},
    ]

    together = model.answer(ZERO_SHOT, *items)

    for item, output in zip(items, together, strict=True):
        alone = model.answer(ZERO_SHOT, item)[0].model_dump()["probabilities"]
        assert output.model_dump()["probabilities"] == pytest.approx(alone, abs=1e-4)


def test_equal_classes_are_compared_together_and_answered_in_order(model: LoadedModel) -> None:
    other = {"classes": ["cup"], "config": {"multi_label": True}}
    items: list[dict[str, Any]] = [
        {"image": data_url(photo(name), "PNG"), **({"classes": CLASSES} if name in PHOTOS[:3] else other)}
        for name in ("chelsea", "coffee", "rocket", "page", "retina")
    ]

    together = [output.model_dump()["probabilities"] for output in model.answer(ZERO_SHOT, *items)]

    assert [len(found) for found in together] == [3, 1, 3, 1, 3]
    alone = [model.answer(ZERO_SHOT, item)[0].model_dump()["probabilities"] for item in items]
    for got, wanted in zip(together, alone, strict=True):
        assert got == pytest.approx(wanted, abs=1e-4)
    assert np.ptp([alone[row] for row in (0, 2, 4)], axis=0).max() > 0.01


def test_items_with_different_classes_share_one_image_pass(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner: Any = model.runner(ZERO_SHOT)
    batches: list[int] = []
    encode = runner.encode_images

    def counting(pixels: Any) -> Any:
        batches.append(len(pixels))
        return encode(pixels)

    monkeypatch.setattr(runner, "encode_images", counting)
    image = data_url(photo("chelsea"))

    model.answer(
        ZERO_SHOT,
        {"image": image, "classes": ["owl", "dog"]},
        {"image": image, "classes": ["fox"], "config": {"multi_label": True}},
        {"image": image, "classes": ["elk"], "config": {"hypothesis_template": "{}"}},
    )

    assert batches == [3]


def test_the_classes_exclude_each_other_when_asked(model: LoadedModel) -> None:
    assert sum(probabilities(model, photo("chelsea"), CLASSES, multi_label=False)) == pytest.approx(1)


def test_multi_label_does_not_depend_on_the_other_classes(model: LoadedModel) -> None:
    image = photo("coffee")

    together = probabilities(model, image, CLASSES, multi_label=True)

    assert probabilities(model, image, CLASSES[1:2], multi_label=True) == pytest.approx(
        together[1:2], abs=1e-4
    )


@pytest.mark.parametrize("size", [(1, 1), (20, 300), (31, 33)])
def test_small_and_narrow_images_are_answered(model: LoadedModel, size: tuple[int, int]) -> None:
    assert len(probabilities(model, Image.new("RGB", size, "red"), CLASSES)) == 3


def test_an_image_too_narrow_to_scale_is_refused_where_the_aspect_is_kept(
    model: LoadedModel, kind: str
) -> None:
    narrow = Image.new("RGB", (1, 3000))
    if kind == "siglip":  # it scales every image to a square
        assert len(probabilities(model, narrow, CLASSES)) == 3
        return
    with pytest.raises(ModelmillError, match="times as long as wide") as caught:
        probabilities(model, narrow, CLASSES)

    assert caught.value.code is ErrorCode.INVALID_MEDIA


def test_a_class_longer_than_the_window_is_cut_off(model: LoadedModel) -> None:
    assert len(probabilities(model, photo("coffee"), ["cat " * 100, "dog"])) == 2


def test_the_trained_scale_is_used(
    open_model: OpenModel, tiny: Callable[..., Path], exported: Callable[[str], Path]
) -> None:
    for folder, backend in ((tiny("clip"), "transformers"), (exported("clip"), "onnx")):
        runner: Any = open_model(folder_entry(folder, ZERO_SHOT, backend)).runner(ZERO_SHOT)
        scoring = runner.scoring
        assert scoring.scale == pytest.approx(np.exp(3.0), rel=1e-3)
        assert scoring.bias == 0
    flat = open_model(folder_entry(tiny("clip", logit_scale=-20.0), ZERO_SHOT))
    assert probabilities(flat, photo("chelsea"), CLASSES) == pytest.approx([1 / 3] * 3, abs=1e-4)


def test_siglips_bias_is_used(
    open_model: OpenModel, tiny: Callable[..., Path], exported: Callable[[str], Path]
) -> None:
    for folder, backend in ((tiny("siglip"), "transformers"), (exported("siglip"), "onnx")):
        runner: Any = open_model(folder_entry(folder, ZERO_SHOT, backend)).runner(ZERO_SHOT)
        scoring = runner.scoring
        assert scoring.sigmoid
        assert scoring.scale == pytest.approx(np.exp(2.0), rel=1e-3)
        assert scoring.bias == pytest.approx(-3.0, rel=1e-3)


@pytest.mark.parametrize("name", [*PHOTOS, "page", "text"])
def test_own_image_steps_equal_the_librarys(kind: str, tiny: Callable[..., Path], name: str) -> None:
    from transformers import AutoImageProcessor

    folder = tiny(kind)
    processor: Any = AutoImageProcessor
    wanted = processor.from_pretrained(folder)(images=photo(name), return_tensors="np")["pixel_values"][0]

    got = read_image_settings(folder_entry(folder, ZERO_SHOT), folder).pixels(photo(name))

    np.testing.assert_allclose(got, wanted, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_onnx_models_type_is_given_to_each_image_in_its_thread(
    open_model: OpenModel, exported: Callable[[str], Path], dtype: str
) -> None:
    model = open_model(folder_entry(exported("clip"), ZERO_SHOT, "onnx"))
    weights: Any = model.runner(ZERO_SHOT).weights
    runner = ClipRunner(replace(weights, image_dtype=dtype), model.context)

    assert runner.pixels(photo("coffee")).dtype == dtype


def test_without_an_onnx_file_the_other_backend_is_named(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext]
) -> None:
    with pytest.raises(ModelmillError, match="use the backend transformers"):
        LoadedModel(context_of(folder_entry(tiny("clip"), ZERO_SHOT, "onnx"))).load()


def test_a_model_that_compares_nothing_is_refused(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    for file in [*tiny("encoder").glob("*.*"), tiny("clip") / "preprocessor_config.json"]:
        (tmp_path / file.name).symlink_to(file)

    with pytest.raises(ModelmillError, match="a BertModel does not compare images with texts"):
        LoadedModel(context_of(folder_entry(tmp_path, ZERO_SHOT))).load()


def test_a_folder_without_an_image_processor_is_told_without_its_path(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext]
) -> None:
    with pytest.raises(ModelmillError, match="cannot load it: Can't load image processor") as caught:
        LoadedModel(context_of(folder_entry(tiny("encoder"), ZERO_SHOT))).load()

    assert str(tiny("encoder")) not in caught.value.message


def test_softmax_models_judge_one_class_against_a_neutral_sentence() -> None:
    scoring = Scoring(scale=20.0)
    cosines = np.array([0.3, 0.5], dtype=np.float32)

    assert scoring.probabilities(cosines, True, neutral=0.3) == pytest.approx([0.5, 0.982], abs=1e-3)
    assert scoring.probabilities(cosines, None) == pytest.approx([0.018, 0.982], abs=1e-3)


def test_sigmoid_models_do_so_unless_told_otherwise() -> None:
    scoring = Scoring(scale=10.0, bias=-5.0, sigmoid=True)
    cosines = np.array([0.5, 0.5], dtype=np.float32)

    assert scoring.probabilities(cosines, None) == pytest.approx([0.5, 0.5])
    assert scoring.probabilities(cosines, True) == pytest.approx([0.5, 0.5])
    assert scoring.probabilities(cosines[:1], False) == pytest.approx([1.0])


def test_extreme_scales_do_not_overflow() -> None:
    cosines = np.array([-1.0, 1.0], dtype=np.float32)

    for scoring in (Scoring(1e6), Scoring(1e6, sigmoid=True)):
        assert scoring.probabilities(cosines, None) == pytest.approx([0.0, 1.0])


class TestTextVectors:
    def encoder(self) -> tuple[TextVectors, list[list[str]]]:
        calls: list[list[str]] = []

        def encode(sentences: Any) -> Any:
            calls.append(list(sentences))
            return np.array([[len(sentence), 1.0] for sentence in sentences])

        return TextVectors(encode, capacity=3, chunk=2), calls

    def test_missing_sentences_are_encoded_once_in_chunks(self) -> None:
        vectors, calls = self.encoder()

        vectors.of(["a", "bb", "a", "ccc"])
        vectors.of(["bb", "ccc"])

        assert calls == [["a", "bb"], ["ccc"]]

    def test_vectors_have_length_one(self) -> None:
        vectors, _ = self.encoder()

        assert np.linalg.norm(vectors.of(["abcd"])["abcd"]) == pytest.approx(1)

    def test_the_oldest_is_forgotten_first(self) -> None:
        vectors, calls = self.encoder()
        vectors.of(["a", "bb", "ccc"])
        vectors.of(["a"])
        vectors.of(["dddd"])

        vectors.of(["a", "bb"])

        assert len(vectors) == 3
        assert calls[-1] == ["bb"]

    def test_a_batch_may_need_more_than_is_kept(self) -> None:
        vectors, _ = self.encoder()

        assert len(vectors.of(["a", "bb", "ccc", "dddd", "eeeee"])) == 5
        assert len(vectors) == 3
