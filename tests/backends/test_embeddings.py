"""Embeddings of images, and of images and texts in one space."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelmill.catalogue import Catalogue, ModelEntry, Source
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.registry import find_task
from tests.fixtures.photos import data_url, photo
from tests.fixtures.tiny.embeddings import tiny_dinov2, tiny_vit_with_pooler
from tests.support.models import OpenModel, folder_entry

ZERO_SHOT, TEXT = "zero-shot-image-classification", "text-embedding"
IMAGE, PAIR, CONTENT = "image-embedding", "image-text-embedding", "multimodal-embedding"
PHOTOS = ["chelsea", "coffee", "rocket", "china.jpg", "flower.jpg", "stereo_motorcycle", "retina"]
SENTENCES = {
    "chelsea": "a photo of a cat",
    "rocket": "a photo of a rocket that starts into space",
    "flower.jpg": "a photo of a flower",
    "stereo_motorcycle": "a photo of a motorcycle in a garage",
    "coffee": "a photo of a cup of coffee",
}

Vector = np.ndarray[Any, np.dtype[np.float64]]


def vectors(model: LoadedModel, task: str, *items: dict[str, Any]) -> Vector:
    return np.array([output.model_dump()["embedding"] for output in model.answer(task, *items)])


def unit(values: Vector) -> Vector:
    scaled: Vector = values / np.linalg.norm(values, axis=-1, keepdims=True)
    return scaled


def every_task(folder: Path) -> ModelEntry:
    return ModelEntry(
        name="tiny-model",
        backend="transformers",
        runner="dual-encoder",
        source=Source(folder=folder),
        tasks=(ZERO_SHOT, IMAGE, PAIR, CONTENT, TEXT),
    )


@pytest.fixture(scope="session")
def clip(open_model: OpenModel, tiny: Callable[..., Path]) -> LoadedModel:
    return open_model(every_task(tiny("clip")))


@pytest.mark.parametrize("change", ["scaled", "cropped", "dimmed"])
def test_a_changed_photo_lies_nearest_to_its_original(open_model: OpenModel, change: str) -> None:
    def changed(name: str) -> Any:
        image = photo(name)
        width, height = image.size
        if change == "scaled":
            return image.resize((width // 3, height // 3))
        if change == "cropped":
            return image.crop((width // 8, height // 8, width, height))
        return image.point(lambda value: value * 0.6)

    model = open_model("efficientnet-lite0")
    originals = unit(vectors(model, IMAGE, *({"image": data_url(photo(name))} for name in PHOTOS)))
    others = unit(vectors(model, IMAGE, *({"image": data_url(changed(name))} for name in PHOTOS)))

    cosines = others @ originals.T
    assert cosines.argmax(axis=1).tolist() == list(range(len(PHOTOS)))
    assert np.diag(cosines).min() > 0.75


@pytest.mark.parametrize("task", [IMAGE, PAIR, CONTENT, "optical-character-recognition"])
def test_the_examples_are_what_the_models_say(open_model: OpenModel, task: str) -> None:
    example = find_task(task).example
    (output,) = open_model(example.model).answer(task, example.input)

    for key, wanted in example.output.items():
        found = output.model_dump()[key]
        if key.endswith("embedding"):
            assert found[:4] == pytest.approx(wanted, abs=1e-4)
        elif key == "objects":
            assert [piece["text"] for piece in found] == [piece["text"] for piece in wanted]
            assert [piece["score"] for piece in found] == pytest.approx([1, 1], abs=1e-3)
            assert [piece["box"] for piece in found] == [pytest.approx(p["box"], abs=2) for p in wanted]
        else:
            assert found == wanted


def test_photos_find_their_sentences_in_one_space(open_model: OpenModel) -> None:
    items = [{"input": {"image": data_url(photo(name))}} for name in SENTENCES]
    items += [{"input": {"text": sentence}} for sentence in SENTENCES.values()]

    found = vectors(open_model("conse-lite0"), CONTENT, *items)

    images, texts = found[: len(SENTENCES)], found[len(SENTENCES) :]
    assert (images @ texts.T).argmax(axis=1).tolist() == list(range(len(SENTENCES)))
    # And the reverse.
    assert (texts @ images.T).argmax(axis=1).tolist() == list(range(len(SENTENCES)))


def test_plain_words_find_their_photos(open_model: OpenModel) -> None:
    words = ["kitten", "launch of a space mission", "daisies in the garden", "motorbike", "espresso"]
    items = [{"input": {"image": data_url(photo(name))}} for name in SENTENCES]

    found = vectors(
        open_model("conse-lite0"), CONTENT, *items, *({"input": {"text": word}} for word in words)
    )

    images, texts = found[: len(SENTENCES)], found[len(SENTENCES) :]
    assert (texts @ images.T).argmax(axis=1).tolist() == list(range(len(SENTENCES)))


def test_the_dot_product_of_pairs_is_the_mean_of_both_cosines(open_model: OpenModel) -> None:
    items = [{"image": data_url(photo(name)), "text": text} for name, text in SENTENCES.items()]
    one, other = (output.model_dump() for output in open_model("conse-lite0").answer(PAIR, *items[:2]))

    def cosine(key: str) -> float:
        return float(np.dot(one[key], other[key]))

    expected = (cosine("image_embedding") + cosine("text_embedding")) / 2
    assert cosine("embedding") == pytest.approx(expected, abs=1e-6)
    assert np.linalg.norm(one["embedding"]) == pytest.approx(1, abs=1e-6)


def test_a_mixed_batch_makes_one_pass_over_images_and_one_over_texts(
    clip: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    network, passes = clip.runner(CONTENT).weights.model, []
    for name in ("get_image_features", "get_text_features"):
        original = getattr(network, name)

        def watching(*, _original: Any = original, _name: str = name, **inputs: Any) -> Any:
            passes.append((_name, len(next(iter(inputs.values())))))
            return _original(**inputs)

        monkeypatch.setattr(network, name, watching)
    image = {"input": {"image": data_url(photo("coffee"))}}

    vectors(clip, CONTENT, {"input": {"text": "a"}}, image, {"input": {"text": "some tea"}}, image, image)

    assert sorted(passes) == [("get_image_features", 3), ("get_text_features", 2)]


def test_all_tasks_of_a_dual_encoder_share_one_model(clip: LoadedModel) -> None:
    assert len({id(clip.runner(task).weights) for task in (ZERO_SHOT, IMAGE, PAIR, CONTENT, TEXT)}) == 1
    image, text = data_url(photo("rocket")), "a rocket"

    (both,) = clip.answer(PAIR, {"image": image, "text": text})

    found = both.model_dump()
    for task, item, key in (
        (IMAGE, {"image": image}, "image_embedding"),
        (CONTENT, {"input": {"image": image}}, "image_embedding"),
        (TEXT, {"text": text}, "text_embedding"),
        (CONTENT, {"input": {"text": text}}, "text_embedding"),
    ):
        np.testing.assert_allclose(vectors(clip, task, item)[0], found[key], atol=1e-5)


@pytest.mark.parametrize("name", ["conse-lite0", "efficientnet-lite0"])
def test_all_tasks_of_a_catalogued_model_share_its_weights(open_model: OpenModel, name: str) -> None:
    model = open_model(name)

    assert len({id(model.runner(task).weights) for task in model.context.entry.tasks}) == 1


@pytest.mark.parametrize("name", ["clip-vit-base-patch32", "clip-vit-large-patch14", "siglip-base"])
def test_the_catalogues_dual_encoders_name_runners_that_share_a_load(name: str) -> None:
    from modelmill_backends.registry import find_runner

    entry = Catalogue.load().find(name)
    runners: list[Any] = [find_runner(entry, task) for task in entry.tasks]

    assert len({runner.load.__func__ for runner in runners}) == 1
    assert set(entry.tasks) == {ZERO_SHOT, IMAGE, PAIR, CONTENT, TEXT}


def test_a_dual_encoder_normalises_unless_told_otherwise(clip: LoadedModel) -> None:
    image = data_url(photo("coffee"))
    own, asked, refused = vectors(
        clip, IMAGE, *({"image": image, "config": {"normalize": value}} for value in (None, True, False))
    )

    assert np.linalg.norm(own) == pytest.approx(1, abs=1e-5)
    np.testing.assert_allclose(own, asked, atol=1e-6)
    assert np.linalg.norm(refused) > 1.5
    np.testing.assert_allclose(unit(refused), own, atol=1e-5)


def test_a_pair_has_length_one_for_parts_of_any_length(clip: LoadedModel) -> None:
    item = {"image": data_url(photo("coffee")), "text": "a cup", "config": {"normalize": False}}
    (output,) = clip.answer(PAIR, item)

    found = {key: float(np.linalg.norm(value)) for key, value in output.model_dump().items()}
    assert found["embedding"] == pytest.approx(1, abs=1e-5)
    assert found["image_embedding"] > 1.5
    assert found["text_embedding"] > 1.5


def test_features_of_a_classifier_keep_their_length_unless_asked(open_model: OpenModel) -> None:
    image = data_url(photo("coffee"))
    own, asked = vectors(
        open_model("efficientnet-lite0"),
        IMAGE,
        {"image": image},
        {"image": image, "config": {"normalize": True}},
    )

    assert np.linalg.norm(own) > 5
    np.testing.assert_allclose(unit(own), asked, atol=1e-6)


def test_text_beyond_the_window_is_cut_off(clip: LoadedModel) -> None:
    # Each letter is a token here; two of the 77 tokens are the beginning and the end.
    whole, cut, shorter = vectors(clip, TEXT, *({"text": "mills " * count} for count in (400, 15, 14)))

    np.testing.assert_allclose(whole, cut, atol=1e-5)
    assert abs(whole - shorter).max() > 1e-3


def test_a_dual_encoder_knows_no_prompts(clip: LoadedModel) -> None:
    with pytest.raises(ModelmillError, match="it knows: none") as caught:
        vectors(clip, TEXT, {"text": "cats", "config": {"prompt_name": "query"}})

    assert caught.value.fields[0].field == "config.prompt_name"


def test_the_cost_of_a_text_is_its_share_of_the_window(clip: LoadedModel) -> None:
    runner = clip.runner(TEXT)

    assert runner.preprocess(_input(TEXT, {"text": "abc"})).cost == pytest.approx(5 / 77)


def test_texts_are_prepared_in_many_threads_at_once(clip: LoadedModel) -> None:
    encoder = clip.runner(TEXT).weights
    texts = [f"{index} rockets " * (1 + index % 20) for index in range(200)]

    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(encoder.prepare_text, texts))

    assert together == [encoder.prepare_text(text) for text in texts]


@pytest.mark.parametrize("side", ["left", "right"])
def test_texts_are_padded_on_the_tokenizers_side(
    clip: LoadedModel, monkeypatch: pytest.MonkeyPatch, side: str
) -> None:
    encoder = clip.runner(TEXT).weights
    monkeypatch.setattr(encoder.loaded.tokenizer, "padding_side", side)
    texts = ["a", "some words more"]
    wanted = encoder.loaded.tokenizer(texts, padding=True, return_tensors="np")

    found = encoder._padded([encoder.prepare_text(text) for text in texts])

    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in wanted.items()
    }


def test_a_pooler_without_weights_is_not_used(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    import torch

    image = {"image": data_url(photo("chelsea"))}
    found = []
    for seed in (1, 2):
        # The library fills missing weights at random.
        torch.manual_seed(seed)
        model = LoadedModel(context_of(folder_entry(tiny("vit"), IMAGE))).load()
        found.append(vectors(model, IMAGE, image)[0])
        assert not model.runner(IMAGE).weights._pools
        model.close()

    np.testing.assert_array_equal(found[0], found[1])
    trained = LoadedModel(context_of(folder_entry(tiny_vit_with_pooler(tmp_path), IMAGE))).load()
    assert trained.runner(IMAGE).weights._pools
    # The last step of the pooler is a hyperbolic tangent.
    assert abs(vectors(trained, IMAGE, image)).max() < 1


def test_a_vision_model_does_not_read(context_of: Callable[..., LoadContext], tmp_path: Path) -> None:
    for task in (ZERO_SHOT, PAIR, CONTENT):
        folder = tmp_path / task
        with pytest.raises(ModelmillError, match="a Dinov2Model does not compare images with texts"):
            LoadedModel(context_of(folder_entry(tiny_dinov2(folder), task))).load()


def test_a_text_model_does_not_see(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    for file in [*tiny("encoder").glob("*.*"), tiny("clip") / "preprocessor_config.json"]:
        (tmp_path / file.name).symlink_to(file)

    with pytest.raises(ModelmillError, match="a BertModel does not take images") as caught:
        LoadedModel(context_of(folder_entry(tmp_path, IMAGE))).load()

    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED


def test_a_dual_encoder_without_a_tokenizer_is_refused(
    tiny: Callable[..., Path], context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    for name in ("config.json", "model.safetensors", "preprocessor_config.json"):
        (tmp_path / name).symlink_to(tiny("clip") / name)

    with pytest.raises(ModelmillError, match="its folder holds no tokenizer"):
        LoadedModel(context_of(folder_entry(tmp_path, IMAGE))).load()

    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelmillError, match="cannot load its tokenizer") as caught:
        LoadedModel(context_of(folder_entry(tmp_path, IMAGE))).load()
    assert str(tmp_path) not in caught.value.message


def _input(task: str, item: dict[str, Any]) -> Any:
    return find_task(task).input.model_validate(item)
