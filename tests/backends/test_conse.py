from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_backends.onnx.conse import ConseOptions
from modelmill_tasks.zero_shot_image_classification import TASK as CONTRACT
from tests.fixtures.photos import SUBJECTS, data_url, photo
from tests.support.models import ZERO_SHOT, OpenModel

CLASSES = list(SUBJECTS.values())
BEYOND_IMAGENET = {
    "clock": "blurred by motion until the network sees bubbles",
    "coins": "none of ImageNet's labels is a coin",
    "astronaut": "none of ImageNet's labels is a person",
}


def best(model: LoadedModel, name: str, classes: list[str]) -> str:
    (output,) = model.answer(ZERO_SHOT, {"image": data_url(photo(name)), "classes": classes})
    probabilities = output.model_dump()["probabilities"]
    assert sum(probabilities) == pytest.approx(1)
    return classes[int(np.argmax(probabilities))]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.xfail(reason=BEYOND_IMAGENET[name], strict=True))
        if name in BEYOND_IMAGENET
        else name
        for name in SUBJECTS
    ],
)
def test_real_photos_are_told_apart(open_model: OpenModel, name: str) -> None:
    assert best(open_model("conse-lite0"), name, CLASSES) == SUBJECTS[name]


def test_the_example_of_the_contract_is_what_the_model_says(open_model: OpenModel) -> None:
    (output,) = open_model("conse-lite0").answer(ZERO_SHOT, CONTRACT.example.input)

    expected = CONTRACT.example.output["probabilities"]
    assert output.model_dump()["probabilities"] == pytest.approx(expected, abs=2e-4)


def test_a_batch_gives_each_image_what_it_gets_alone(open_model: OpenModel) -> None:
    model = open_model("conse-lite0")
    items: list[dict[str, Any]] = [
        {"image": data_url(photo("chelsea")), "classes": ["cat", "dog"]},
        {
            "image": data_url(photo("rocket"), "PNG"),
            "classes": ["rocket", "a much longer class name", "tree"],
        },
        {"image": data_url(photo("coffee")), "classes": ["cup"], "config": {"multi_label": True}},
        {
            "image": data_url(photo("coffee")),
            "classes": ["cup", "cat"],
            "config": {"hypothesis_template": "{}"},
        },
    ]

    together = model.answer(ZERO_SHOT, *items)

    for item, output in zip(items, together, strict=True):
        alone = model.answer(ZERO_SHOT, item)[0].model_dump()["probabilities"]
        assert output.model_dump()["probabilities"] == pytest.approx(alone, abs=1e-4)


def test_items_with_different_classes_share_one_image_pass_and_one_text_pass(
    context_of: Callable[..., LoadContext],
) -> None:
    model = LoadedModel(context_of("conse-lite0")).load()
    runner = model.runner(ZERO_SHOT)
    images = Counting(runner.weights.classifier.session)
    runner.weights.classifier.session = images
    encoder = runner.weights.encoder.runner
    texts = Counting(encoder.weights.session)
    object.__setattr__(encoder.weights, "session", texts)
    image = data_url(photo("chelsea"))

    model.answer(
        ZERO_SHOT,
        {"image": image, "classes": ["cat", "dog"]},
        {"image": image, "classes": ["cat", "fox"]},
        {"image": image, "classes": ["owl"]},
    )
    assert (images.runs, texts.runs) == (1, 1)

    model.answer(ZERO_SHOT, {"image": image, "classes": ["owl", "fox"]})
    assert (images.runs, texts.runs) == (2, 1), "known classes are not encoded again"


def test_multi_label_judges_each_class_by_itself(open_model: OpenModel) -> None:
    image = data_url(photo("chelsea"))
    config = {"multi_label": True}

    both, one = open_model("conse-lite0").answer(
        ZERO_SHOT,
        {"image": image, "classes": ["cat", "kitten", "rocket"], "config": config},
        {"image": image, "classes": ["cat"], "config": config},
    )

    cat, kitten, rocket = both.model_dump()["probabilities"]
    assert cat > 0.9
    assert kitten > 0.9
    assert rocket < 0.5
    assert one.model_dump()["probabilities"] == pytest.approx([cat], abs=1e-4)


def test_a_bad_image_fails_alone_and_before_the_device(open_model: OpenModel) -> None:
    runner = open_model("conse-lite0").runner(ZERO_SHOT)
    whole = data_url(photo("chelsea"))
    # A correct header is enough for the API; the runner is the first to read the pixels.
    good, bad = (
        CONTRACT.parse(json.dumps({"image": image, "classes": ["cat", "dog"]}), trusted=True)
        for image in (whole, whole[: whole.index(",") + 1 + 4000])
    )

    with pytest.raises(ModelmillError) as caught:
        runner.preprocess(bad)
    assert caught.value.code is ErrorCode.INVALID_MEDIA

    prepared = runner.preprocess(good)
    (raw,) = runner.forward([prepared])
    assert runner.postprocess(prepared, raw).model_dump()["probabilities"][0] > 0.9


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"text_encoder": "minilm", "topp": 3}, "'topp'; its runner knows: text_encoder, top, scale"),
        ({"text_encoder": "minilm", "top": 0}, "'top'"),
        ({}, "'text_encoder'"),
        ({"text_encoder": "minilmm"}, "Did you mean minilm"),
        ({"text_encoder": "efficientnet-lite0"}, "does not answer text-embedding"),
    ],
)
def test_wrong_options_are_named(
    context_of: Callable[..., LoadContext], options: dict[str, Any], reason: str
) -> None:
    context = context_of("conse-lite0")
    entry = context.entry.model_copy(update={"options": options})

    with pytest.raises(ModelmillError) as caught:
        LoadedModel(context_of(entry)).load()

    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED
    assert reason in caught.value.message


def test_the_catalogue_sets_what_was_measured(context_of: Callable[..., LoadContext]) -> None:
    options = ConseOptions.model_validate(context_of("conse-lite0").entry.options)

    assert (options.top, options.scale) == (10, 20.0)


@pytest.mark.parametrize("model", ["conse-lite0", "efficientnet-lite0", "minilm"])
def test_a_warm_worker_imports_neither_torch_nor_transformers(
    open_model: OpenModel, settings: Settings, model: str, tmp_path: Path
) -> None:
    open_model(model)  # fills the cache
    code = f"""
import json, sys
from pathlib import Path
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device
from modelmill_backends.loader import LoadedModel
from modelmill.catalogue import Catalogue
from modelmill.settings import Settings
from modelmill_tasks.registry import find_task

catalogue = Catalogue.load()
entry = catalogue.find({model!r})
settings = Settings(cache_dir=Path({str(settings.cache_dir)!r}))
model = LoadedModel(LoadContext(entry, Device("cpu", 1), catalogue, settings)).load()
task = find_task(entry.tasks[0])
model.answer(task.name, task.example.input)
print(json.dumps([name for name in ("torch", "transformers", "onnx", "sklearn") if name in sys.modules]))
"""
    root = Path(__file__).parents[2]

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )

    assert json.loads(done.stdout) == []


class Counting:
    """A session that counts its passes."""

    def __init__(self, session: Any) -> None:
        self._session = session
        self.runs = 0

    def run(self, *arguments: Any) -> Any:
        self.runs += 1
        return self._session.run(*arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)
