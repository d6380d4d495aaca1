"""Face embedding. OpenCV's own readers of the same networks compute the expected results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_backends.onnx.faces import ALIGNED, aligned, similarity
from modelmill_tasks.registry import find_task
from tests.fixtures.photos import data_url, photo
from tests.fixtures.specimens.faces import opencv_rows
from tests.fixtures.tiny.faces import tiny_faces
from tests.support.models import OpenModel, folder_entry

TASK = "face-embedding"
OPTIONS = {"detector": "detector.onnx", "recognizer": "recognizer.onnx"}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_faces(tmp_path_factory.mktemp("faces"), fixed=True)


@pytest.fixture(scope="session")
def model(open_model: OpenModel, folder: Path) -> LoadedModel:
    return open_model(folder_entry(folder, TASK, "onnx", options=OPTIONS))


def faces(model: LoadedModel, image: Any, **config: Any) -> list[dict[str, Any]]:
    (output,) = model.answer(TASK, {"image": data_url(image, "PNG"), "config": config})
    found: list[dict[str, Any]] = output.model_dump()["faces"]
    return found


def recogniser(folder: Path) -> Any:
    create: Any = cv2.FaceRecognizerSF.create
    return create(str(folder / "recognizer.onnx"), "")


# These photos only: OpenCV cuts boxes to whole pixels before it compares them. If the overlap of two boxes is
# exactly the limit, it may keep the other one.
@pytest.mark.parametrize("name", ["astronaut", "coffee", "rocket", "retina"])
def test_faces_and_vectors_are_those_of_opencv(model: LoadedModel, folder: Path, name: str) -> None:
    image = photo(name)
    rows, scale = opencv_rows(folder, image, 0.7)
    pixels = np.ascontiguousarray(np.asarray(image)[:, :, ::-1])

    found = faces(model, image)

    assert len(found) == len(rows) > 1
    for face, row in zip(found, rows, strict=True):
        in_image = row.copy()
        in_image[:14] /= scale
        assert list(face["box"].values()) == pytest.approx(in_image[:4].tolist(), abs=1e-2)
        assert face["score"] == pytest.approx(float(row[14]), abs=1e-5)
        wanted = recogniser(folder).feature(recogniser(folder).alignCrop(pixels, in_image))[0]
        # Not exactly equal: OpenCV rounds positions between pixels to 1/32.
        assert np.dot(face["embedding"], wanted / np.linalg.norm(wanted)) > 0.9995


def test_an_aligned_face_is_opencvs(folder: Path) -> None:
    image = photo("astronaut")
    landmarks = np.array([[198, 110], [248, 108], [228, 140], [205, 160], [246, 158]], dtype=np.float32)
    row = np.concatenate([[0, 0, 1, 1], landmarks.ravel(), [1]]).astype(np.float32)
    wanted = recogniser(folder).alignCrop(np.ascontiguousarray(np.asarray(image)[:, :, ::-1]), row)

    found = aligned(image, landmarks)

    assert np.abs(found[:, :, ::-1].astype(int) - wanted.astype(int)).mean() < 1
    shifted = np.abs(found[:, 1:, ::-1].astype(int) - wanted[:, :-1].astype(int)).mean()
    assert shifted > 2, "a shift by one pixel would be seen"


@pytest.mark.parametrize(("angle", "scale"), [(0, 1.0), (30, 0.5), (-120, 3.0)])
def test_a_similarity_is_found_again(angle: float, scale: float) -> None:
    turn = np.deg2rad(angle)
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    points = np.asarray(ALIGNED)

    found = similarity(points, points @ matrix.T + [5, -7])

    np.testing.assert_allclose(found, np.hstack([matrix, [[5], [-7]]]), atol=1e-9)


def test_points_in_one_place_make_no_error() -> None:
    assert np.isfinite(similarity(np.ones((5, 2)), np.asarray(ALIGNED))).all()


def test_the_threshold_is_each_images_own(model: LoadedModel) -> None:
    image = data_url(photo("coffee"))
    items = [{"image": image, "config": {"threshold": value}} for value in (0.0, 0.7, 1.0)]

    every, some, none = (output.model_dump()["faces"] for output in model.answer(TASK, *items))

    assert len(every) > len(some) > len(none) == 0
    scores = [face["score"] for face in some]
    assert scores == sorted(scores, reverse=True)
    assert min(scores) >= 0.7


def test_vectors_have_length_one_unless_told_otherwise(model: LoadedModel) -> None:
    own, raw = (faces(model, photo("coffee"), normalize=value)[0]["embedding"] for value in (None, False))

    assert np.linalg.norm(own) == pytest.approx(1, abs=1e-5)
    assert np.linalg.norm(raw) > 2
    np.testing.assert_allclose(raw / np.linalg.norm(raw), own, atol=1e-5)


def test_the_recognisers_range_can_be_that_of_arcface(
    model: LoadedModel, folder: Path, open_model: OpenModel
) -> None:
    options = OPTIONS | {"input_range": "-1..1"}
    other = open_model(folder_entry(folder, TASK, "onnx", options=options))
    image = photo("coffee")

    found, wide = (faces(one, image, normalize=False)[0]["embedding"] for one in (other, model))

    (name,) = [item.name for item in other.runner(TASK).weights.recognizer.get_inputs()]
    # The network is linear, so the shift of the input adds the vector of an image of ones.
    (ones,) = other.runner(TASK).weights.recognizer.run(
        None, {name: np.ones((1, 3, 112, 112), dtype=np.float32)}
    )
    np.testing.assert_allclose(found, np.array(wide) / 127.5 - ones[0], atol=1e-3)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"detector": "yunet.onnx", "recognizer": "recognizer.onnx"}, "holds no yunet.onnx"),
        (
            {"detector": "recognizer.onnx", "recognizer": "recognizer.onnx"},
            "is not a YuNet: it has no output bbox_16",
        ),
        (OPTIONS | {"input_range": "0..1"}, "'input_range'"),
    ],
)
def test_wrong_options_are_named(
    context_of: Callable[..., LoadContext], folder: Path, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ModelmillError) as caught:
        LoadedModel(context_of(folder_entry(folder, TASK, "onnx", options=options))).load()

    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED
    assert reason in caught.value.message


def test_a_threshold_outside_of_0_to_1_is_refused() -> None:
    with pytest.raises(ModelmillError) as caught:
        find_task(TASK).parse('{"image": "AAAA", "config": {"threshold": 1.5}}')

    assert "config.threshold" in [problem.field for problem in caught.value.fields]
