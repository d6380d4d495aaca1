"""YOLO models in ONNX: which boxes stay, their positions in the image, and files that are not a YOLO."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelmill.catalogue import Catalogue, ModelEntry, Source
from modelmill.errors import ModelmillError
from modelmill.settings import Settings
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_backends.onnx.object_detection import kept_boxes, letterboxed
from tests.fixtures.photos import data_url, photo
from tests.fixtures.tiny.yolo import constant_yolo
from tests.support.models import CPU

WIDE = data_url(photo("coffee").resize((128, 64)), "PNG")
BOXES = [
    [16, 24, 8, 8, 0.9, 0.0, 0.1],
    [17, 24, 8, 8, 0.8, 0.0, 0.1],  # almost the first box, with the same label
    [16, 24, 8, 8, 0.1, 0.7, 0.1],  # over the first box, with another label
    [48, 40, 64, 8, 0.0, 0.2, 0.6],  # beyond the right edge
    [32, 8, 8, 4, 0.5, 0.0, 0.0],  # in the grey above the image
]


def loaded(folder: Path, settings: Settings, names: str | None = None, **options: Any) -> LoadedModel:
    source = constant_yolo(folder, BOXES) if names is None else constant_yolo(folder, BOXES, names)
    entry = ModelEntry(
        name="yolo",
        backend="onnx",
        runner="yolo",
        source=Source(folder=source / "model.onnx"),
        tasks=("object-detection",),
        options=options,
    )
    return LoadedModel(LoadContext(entry, CPU, Catalogue({}), settings)).load()


def test_boxes_lie_where_they_are_in_the_image(tmp_path: Path, settings: Settings) -> None:
    model = loaded(tmp_path, settings)

    (output,) = model.answer("object-detection", {"image": WIDE, "config": {"threshold": 0.3}})

    # The image fills the rows 16 to 48 of a square of 64, at half its size.
    assert output.model_dump()["objects"] == [
        {
            "label": "cat",
            "score": pytest.approx(0.9),
            "box": {"left": 24, "top": 8, "width": 16, "height": 16},
        },
        {
            "label": "dog",
            "score": pytest.approx(0.7),
            "box": {"left": 24, "top": 8, "width": 16, "height": 16},
        },
        {
            "label": "cup",
            "score": pytest.approx(0.6),
            "box": {"left": 32, "top": 40, "width": 96, "height": 16},
        },
    ]


def test_top_k_and_iou_decide_what_stays(tmp_path: Path, settings: Settings) -> None:
    model = loaded(tmp_path, settings, iou=0.9)

    outputs = model.answer(
        "object-detection",
        {"image": WIDE, "config": {"threshold": 0.3}},
        {"image": WIDE, "config": {"threshold": 0.3, "top_k": 1}},
    )

    labels = [[one["label"] for one in output.model_dump()["objects"]] for output in outputs]
    assert labels == [["cat", "cat", "dog", "cup"], ["cat"]]


def test_labels_come_from_the_entry_or_else_from_the_file(tmp_path: Path, settings: Settings) -> None:
    model = loaded(tmp_path, settings, labels=("Katze", "Hund", "Tasse"))

    (output,) = model.answer("object-detection", {"image": WIDE, "config": {}})

    assert [one["label"] for one in output.model_dump()["objects"]] == ["Katze", "Hund", "Tasse"]


@pytest.mark.parametrize("names", ["", "{0: 'cat'}", "[1, 2", "{1: 'cat', 2: 'dog', 3: 'cup'}", "exit()"])
def test_a_file_without_names_for_its_labels_does_not_load(
    tmp_path: Path, settings: Settings, names: str
) -> None:
    with pytest.raises(ModelmillError, match=r"it has 3 labels, and . names for them; set option 'labels'"):
        loaded(tmp_path, settings, names)


def test_suppression_is_that_of_a_plain_loop() -> None:
    random = np.random.default_rng(1)
    corner = random.uniform(0, 40, (200, 2))
    boxes = np.concatenate([corner, corner + random.uniform(0, 30, (200, 2))], axis=1).astype(np.float32)
    labels = random.integers(0, 3, 200)

    kept = kept_boxes(boxes, labels, 0.3)

    def iou(one: Any, other: Any) -> float:
        width = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
        height = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
        areas = sum((box[2] - box[0]) * (box[3] - box[1]) for box in (one, other))
        return float(width * height / (areas - width * height))

    expected: list[int] = []
    for row in range(200):
        rivals = [other for other in expected if labels[other] == labels[row]]
        if all(iou(boxes[row], boxes[other]) <= 0.3 for other in rivals):
            expected.append(row)
    assert kept == expected
    assert 10 < len(kept) < 200


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (64, 64), (200, 77)])
def test_any_image_fits_into_the_square(size: tuple[int, int]) -> None:
    box = letterboxed(Image.new("RGB", size, (255, 0, 0)), 64)

    assert box.pixels.shape == (3, 64, 64)
    rows = np.flatnonzero((box.pixels[0] == 1).any(axis=1))
    columns = np.flatnonzero((box.pixels[0] == 1).any(axis=0))
    assert (rows[0], columns[0]) == (box.top, box.left)
    assert max(len(rows), len(columns)) == 64
