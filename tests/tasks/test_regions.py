"""The contracts of the tasks that find regions: which requests they refuse, with which code and field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_tasks.contract import Task
from modelmill_tasks.image_segmentation import Segment
from modelmill_tasks.instance_segmentation import Instance
from modelmill_tasks.registry import find_task

THRESHOLDS = ["object-detection", "zero-shot-object-detection", "keypoint-detection"]
THRESHOLDS += ["instance-segmentation", "image-segmentation"]
TASKS = [*THRESHOLDS, "semantic-segmentation", "depth-estimation"]


def refused(task: Task, change: dict[str, Any]) -> ModelmillError:
    with pytest.raises(ModelmillError) as caught:
        task.parse(json.dumps(task.example.input | change))
    return caught.value


@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("value", [-0.1, 1.1, "high", None])
def test_a_threshold_lies_between_0_and_1(name: str, value: Any) -> None:
    error = refused(find_task(name), {"config": {"threshold": value}})

    assert error.code is ErrorCode.INVALID_INPUT
    assert [field.field for field in error.fields] == ["config.threshold"]


@pytest.mark.parametrize("name", THRESHOLDS)
@pytest.mark.parametrize("value", [0, 1, 0.25])
def test_both_ends_are_thresholds(name: str, value: float) -> None:
    task = find_task(name)

    request: Any = task.parse(json.dumps(task.example.input | {"config": {"threshold": value}}))

    assert request.config.threshold == value


@pytest.mark.parametrize("name", ["object-detection", "zero-shot-object-detection"])
@pytest.mark.parametrize("value", [0, 1001, 2.5])
def test_how_many_objects_is_1_to_1000(name: str, value: float) -> None:
    error = refused(find_task(name), {"config": {"top_k": value}})

    assert [field.field for field in error.fields] == ["config.top_k"]


@pytest.mark.parametrize("name", TASKS)
def test_an_unknown_key_is_named(name: str) -> None:
    error = refused(find_task(name), {"config": {"colour": 1}})

    assert [field.field for field in error.fields] == ["config.colour"]


@pytest.mark.parametrize("name", TASKS)
def test_what_is_no_image_is_refused(name: str) -> None:
    error = refused(find_task(name), {"image": "data:image/png;base64,aGVsbG8="})

    assert error.code is ErrorCode.INVALID_MEDIA
    assert [field.field for field in error.fields] == ["image"]


def test_an_unknown_subtask_is_named_with_those_there_are() -> None:
    error = refused(find_task("image-segmentation"), {"config": {"subtask": "bits"}})

    assert [field.field for field in error.fields] == ["config.subtask"]
    assert "'panoptic', 'instance' or 'semantic'" in error.message


@pytest.mark.parametrize("classes", [[], [" "], "cat", None])
def test_something_must_be_looked_for(classes: Any) -> None:
    error = refused(find_task("zero-shot-object-detection"), {"classes": classes})

    assert error.fields[0].field.startswith("classes")


def test_the_rest_has_its_defaults() -> None:
    defaults = {
        name: find_task(name).input.model_fields["config"].get_default(call_default_factory=True)
        for name in TASKS
    }

    found = {name: config.model_dump() for name, config in defaults.items()}

    assert found == {
        "object-detection": {"threshold": 0.5, "top_k": None},
        "zero-shot-object-detection": {"threshold": 0.1, "top_k": None},
        "keypoint-detection": {"threshold": 0.5},
        "instance-segmentation": {"threshold": 0.5},
        "image-segmentation": {"threshold": 0.9, "subtask": None},
        "semantic-segmentation": {},
        "depth-estimation": {},
    }


INSTANCE: dict[str, Any] = find_task("instance-segmentation").example.output["objects"][0]


@pytest.mark.parametrize(
    "change",
    [
        {"rle": ""},
        {"rle": "1,,2"},
        {"rle": "1,-2"},
        {"size": [112]},
        {"size": [112, 112, 3]},
        {"score": 1.01},
        {"score": float("nan")},
        {"box": INSTANCE["box"] | {"left": 0.5}},
        {"box": INSTANCE["box"] | {"width": -1}},
    ],
)
def test_no_runner_can_give_an_instance_that_is_none(change: dict[str, Any]) -> None:
    Instance.model_validate(INSTANCE)

    with pytest.raises(ValidationError):
        Instance.model_validate(INSTANCE | change)


def test_a_segment_may_have_no_score_but_says_so() -> None:
    assert Segment.model_validate({"label": "sky", "score": None, "mask": "x"}).score is None
    with pytest.raises(ValidationError):
        Segment.model_validate({"label": "sky", "mask": "x"})


def test_the_examples_run_lengths_fill_their_images_and_fit_their_boxes() -> None:
    from modelmill_backends.shared.masks import decode_rle, tight_box

    mask = decode_rle(INSTANCE["rle"], INSTANCE["size"])
    assert tight_box(mask).model_dump() == INSTANCE["box"]
    stuffs = find_task("semantic-segmentation").example.output["stuffs"]
    masks: Any = [decode_rle(stuff["rle"], stuff["size"]) for stuff in stuffs]
    assert ((masks[0].astype(int) + masks[1]) == 1).all()
