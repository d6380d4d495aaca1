"""Image classifiers of ``transformers``; EfficientNet-Lite0 has its own file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelmill_backends.loader import LoadedModel
from tests.fixtures.photos import data_url, photo
from tests.support.models import OpenModel, folder_entry

TASK = "image-classification"
PHOTOS = ["chelsea", "rocket", "retina"]


@pytest.fixture(params=["single_label_classification", "multi_label_classification"])
def folder(request: pytest.FixtureRequest, tiny: Callable[..., Path]) -> Path:
    return tiny("vit", problem=request.param)


def classes(model: LoadedModel, *names: str) -> list[list[dict[str, Any]]]:
    outputs = model.answer(TASK, *({"image": data_url(photo(name), "PNG")} for name in names))
    return [output.model_dump()["classes"] for output in outputs]


def test_equals_the_pipeline(open_model: OpenModel, folder: Path) -> None:
    import transformers

    make: Any = transformers.pipeline  # the overloads do not take a variable
    pipeline = make(TASK, model=str(folder), device="cpu")

    for name, got in zip(PHOTOS, classes(open_model(folder_entry(folder, TASK)), *PHOTOS), strict=True):
        wanted = pipeline(photo(name))
        assert [entry["label"] for entry in got] == [entry["label"] for entry in wanted]
        assert [entry["score"] for entry in got] == pytest.approx([e["score"] for e in wanted], abs=1e-4)


def test_a_batch_gives_each_image_what_it_gets_alone(open_model: OpenModel, folder: Path) -> None:
    model = open_model(folder_entry(folder, TASK))

    for name, together in zip(PHOTOS, classes(model, *PHOTOS), strict=True):
        (alone,) = classes(model, name)
        assert [e["score"] for e in together] == pytest.approx([e["score"] for e in alone], abs=1e-4)
