"""Runners that find regions: their options, and edge cases."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from modelmill.catalogue import Catalogue, ModelEntry, Source
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_backends.shared.masks import decode_rle, tight_box
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.regions import PixelBox
from tests.fixtures.photos import data_url, photo
from tests.fixtures.tiny import regions
from tests.support.models import CPU

ASTRONAUT = data_url(photo("astronaut").crop((0, 0, 400, 300)).resize((96, 72)), "PNG")
SEGMENTING = ("image-segmentation", "instance-segmentation", "semantic-segmentation")
SMALLEST = [(1, 1), (1, 40), (40, 1), (2, 3), (90, 4)]

Make = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, settings: Settings) -> Make:
    """``model("detr", "object-detection")``: a tiny model, made and loaded once."""
    kept: dict[str, LoadedModel] = {}

    def make(kind: str, *tasks: str) -> LoadedModel:
        key = f"{kind} {tasks}"
        if key not in kept:
            entry = entry_of(tmp_path_factory.mktemp(kind), kind, *tasks)
            kept[key] = LoadedModel(LoadContext(entry, CPU, Catalogue({}), settings)).load()
        return kept[key]

    return make


def entry_of(folder: Path, kind: str, *tasks: str, **fields: Any) -> ModelEntry:
    source = Source(folder=getattr(regions, f"tiny_{kind}")(folder))
    name = fields.pop("name", f"tiny-{kind.replace('_', '-')}")
    return ModelEntry(name=name, backend="transformers", source=source, tasks=tasks, **fields)


def ask(loaded: LoadedModel, task: str, image: str = ASTRONAUT, **fields: Any) -> dict[str, Any]:
    config = {name: value for name, value in fields.items() if name != "classes"}
    classes = {name: value for name, value in fields.items() if name == "classes"}
    (output,) = loaded.answer(task, {"image": image, "config": config, **classes})
    return output.model_dump()


def refusal(context: LoadContext) -> str:
    with pytest.raises(ModelmillError) as caught:
        LoadedModel(context).load()
    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED
    return caught.value.message


class TestDetection:
    def test_a_threshold_takes_off_the_end_and_top_k_too(self, model: Make) -> None:
        yolos = model("yolos", "object-detection")
        everything = ask(yolos, "object-detection", threshold=0)["objects"]
        scores = [one["score"] for one in everything]

        some = ask(yolos, "object-detection", threshold=scores[3])["objects"]

        assert len(everything) == 6
        assert scores == sorted(scores, reverse=True)
        assert some == everything[:3]
        assert ask(yolos, "object-detection", threshold=0, top_k=2)["objects"] == everything[:2]
        assert ask(yolos, "object-detection", threshold=1)["objects"] == []

    def test_boxes_lie_within_the_image(self, model: Make) -> None:
        cases: list[tuple[str, str, dict[str, Any]]] = [
            ("yolos", "object-detection", {}),
            ("owl", "zero-shot-object-detection", {"classes": ["cat", "cup"]}),
        ]
        for kind, task, fields in cases:
            found = ask(model(kind, task), task, threshold=0, **fields)["objects"]
            boxes = [one["box"] for one in found]
            assert boxes
            assert all(box["left"] >= 0 and box["top"] >= 0 for box in boxes)
            assert all(box["left"] + box["width"] <= 96.001 for box in boxes)
            assert all(box["top"] + box["height"] <= 72.001 for box in boxes)
            assert all(box["width"] > 0 and box["height"] > 0 for box in boxes)

    def test_an_image_is_seen_as_its_orientation_says(self, model: Make) -> None:
        upright = photo("astronaut").crop((0, 0, 400, 300)).resize((96, 72))
        exif = Image.Exif()
        exif[0x0112] = 6  # stored on its left side: viewers turn it by 90° clockwise
        turned = data_url(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=exif)
        yolos = model("yolos", "object-detection")

        assert ask(yolos, "object-detection", turned) == ask(yolos, "object-detection", ASTRONAUT)

    def test_each_class_is_judged_by_itself(self, model: Make) -> None:
        owl = model("owl", "zero-shot-object-detection")

        def found(*classes: str) -> list[float]:
            asked = ask(owl, "zero-shot-object-detection", classes=list(classes), threshold=0)
            return [one["score"] for one in asked["objects"] if one["label"] == "cat"]

        assert found("cat") == pytest.approx(found("dog", "cat", "a very long name"))

    def test_a_class_longer_than_the_window_is_cut_off(self, model: Make) -> None:
        owl = model("owl", "zero-shot-object-detection")
        answers = [
            ask(owl, "zero-shot-object-detection", classes=[name], threshold=0)["objects"]
            for name in ("abcdefghijklmnopqrst", "abcdefghijklmnopqrst uvw", "abcdefghijklm")
        ]

        scores = [[one["score"] for one in answer] for answer in answers]
        assert answers[0][0]["label"] == "abcdefghijklmnopqrst"
        assert scores[0] == scores[1]
        assert scores[0] != scores[2]


class TestSegmentation:
    def test_one_set_of_weights_answers_three_tasks(self, model: Make) -> None:
        mask2former = model("mask2former", *SEGMENTING)

        weights = {id(mask2former.runner(task).weights) for task in SEGMENTING}

        assert len(weights) == 1

    @pytest.mark.parametrize("kind", ["mask2former", "maskformer", "detr_segmentation"])
    def test_an_instances_box_is_tight_around_its_mask(self, model: Make, kind: str) -> None:
        found = ask(model(kind, *SEGMENTING), "instance-segmentation", threshold=0.1)["objects"]

        assert found
        for one in found:
            assert one["size"] == [72, 96]
            assert tight_box(decode_rle(one["rle"], one["size"])) == PixelBox(**one["box"])

    @pytest.mark.parametrize("kind", ["mask2former", "segformer"])
    def test_each_pixel_has_one_label(self, model: Make, kind: str) -> None:
        stuffs = ask(model(kind, "semantic-segmentation"), "semantic-segmentation")["stuffs"]

        masks = np.stack([decode_rle(stuff["rle"], stuff["size"]) for stuff in stuffs])
        assert (masks.sum(axis=0) == 1).all()
        labels = list(regions.LABELS.values())
        assert [stuff["label"] for stuff in stuffs] == sorted((s["label"] for s in stuffs), key=labels.index)

    def test_a_subtask_is_panoptic_or_else_what_the_model_can(self, model: Make) -> None:
        task = "image-segmentation"
        mask2former, segformer = model("mask2former", *SEGMENTING), model("segformer", task)

        assert ask(mask2former, task, threshold=0.1) == ask(
            mask2former, task, threshold=0.1, subtask="panoptic"
        )
        assert ask(segformer, task) == ask(segformer, task, subtask="semantic")
        assert all(segment["score"] is None for segment in ask(segformer, task)["segments"])

    def test_a_subtask_that_the_model_cannot_do_is_refused_with_what_to_do(self, model: Make) -> None:
        with pytest.raises(ModelmillError, match="semantic segmentation only") as caught:
            ask(model("segformer", "image-segmentation"), "image-segmentation", subtask="instance")

        assert caught.value.code is ErrorCode.INVALID_INPUT
        assert [field.field for field in caught.value.fields] == ["config.subtask"]

    def test_a_model_that_tells_no_instances_apart_does_not_load_for_them(
        self, tmp_path: Path, settings: Settings
    ) -> None:
        entry = entry_of(tmp_path, "segformer", "instance-segmentation")

        assert "does not separate instances" in refusal(LoadContext(entry, CPU, Catalogue({}), settings))


class TestKeypoints:
    def load(self, folder: Path, settings: Settings, **options: Any) -> LoadedModel:
        return LoadedModel(self.context(folder, settings, **options)).load()

    def context(self, folder: Path, settings: Settings, **options: Any) -> LoadContext:
        entry = entry_of(folder / "pose", "vitpose", "keypoint-detection", options=options)
        entries = [
            entry_of(folder / "detr", "yolos", "object-detection", name="finder"),
            entry_of(folder / "depth", "dpt", "depth-estimation", name="no-finder"),
        ]
        catalogue = Catalogue({one.name: one for one in entries})
        return LoadContext(entry, CPU, catalogue, settings)

    def test_a_detector_finds_who_has_keypoints(
        self, tmp_path: Path, settings: Settings, model: Make
    ) -> None:
        loaded = self.load(tmp_path, settings, detector="finder", person_label="cup")
        finder = model("yolos", "object-detection")

        found = ask(loaded, "keypoint-detection", threshold=0.2)["objects"]

        people = [
            one for one in ask(finder, "object-detection", threshold=0.2)["objects"] if one["label"] == "cup"
        ]
        assert len(people) >= 2
        assert [(one["score"], one["box"]) for one in found] == [(one["score"], one["box"]) for one in people]
        assert [[point["name"] for point in one["keypoints"]] for one in found] == [
            ["Nose", "L_Eye", "R_Eye", "L_Ear"]
        ] * len(people)
        assert found[0]["keypoints"] != found[1]["keypoints"]

    def test_a_crowd_in_many_images_gets_what_each_gets_alone(
        self, tmp_path: Path, settings: Settings
    ) -> None:
        loaded = self.load(tmp_path, settings, detector="finder", person_label="cup")
        scenes = [data_url(photo("astronaut").crop((9 * i, 7 * i, 300, 280)), "PNG") for i in range(20)]
        items = [{"image": scene, "config": {"threshold": 0}} for scene in scenes]

        together = loaded.answer("keypoint-detection", *items)

        counts = [len(output.model_dump()["objects"]) for output in together]
        assert sum(counts) > 64, "more than one pass takes"
        for output, item in zip(together, items, strict=True):
            (alone,) = loaded.answer("keypoint-detection", item)
            flat = [
                [
                    [(p["x"], p["y"], p["v"]) for p in one["keypoints"]]
                    for one in answer.model_dump()["objects"]
                ]
                for answer in (output, alone)
            ]
            assert np.allclose(flat[0], flat[1], atol=1e-2)

    def test_there_are_no_people_if_the_detector_finds_none(self, tmp_path: Path, settings: Settings) -> None:
        loaded = self.load(tmp_path, settings, detector="finder", person_label="cup")

        assert ask(loaded, "keypoint-detection", threshold=1) == {"objects": []}

    def test_without_a_detector_the_score_is_the_keypoints_mean(self, model: Make) -> None:
        loaded = model("vitpose", "keypoint-detection")

        (one,) = ask(loaded, "keypoint-detection", threshold=0)["objects"]

        assert one["score"] == pytest.approx(np.mean([point["v"] for point in one["keypoints"]]))
        assert one["box"] == {"left": 0, "top": 0, "width": 96, "height": 72}
        assert ask(loaded, "keypoint-detection", threshold=1)["objects"] == []

    @pytest.mark.parametrize(
        ("options", "said"),
        [
            ({"detector": "findr"}, "option 'detector': There is no model 'findr'. Did you mean finder"),
            ({"detector": "no-finder"}, "no-finder does not answer object-detection"),
            ({"detector": "finder", "person_label": "human"}, "finder knows no 'human'"),
            ({"detectr": "finder"}, "unknown option 'detectr'"),
        ],
    )
    def test_a_wrong_option_is_named(
        self, tmp_path: Path, settings: Settings, options: dict[str, Any], said: str
    ) -> None:
        assert said in refusal(self.context(tmp_path, settings, **options))

    def test_another_architecture_does_not_load(self, tmp_path: Path, settings: Settings) -> None:
        entry = entry_of(tmp_path, "dpt", "keypoint-detection")

        assert "a dpt does not find keypoints" in refusal(LoadContext(entry, CPU, Catalogue({}), settings))


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("detr", "object-detection"),
        ("yolos", "object-detection"),
        ("owl", "zero-shot-object-detection"),
        ("vitpose", "keypoint-detection"),
        ("mask2former", "instance-segmentation"),
        ("detr_segmentation", "image-segmentation"),
        ("segformer", "semantic-segmentation"),
        ("depth_anything", "depth-estimation"),
        ("dpt", "depth-estimation"),
    ],
)
@pytest.mark.parametrize("size", SMALLEST)
def test_the_smallest_image_is_answered_or_refused_by_a_code(
    model: Make, kind: str, task: str, size: tuple[int, int]
) -> None:
    image = data_url(photo("coffee").resize(size), "PNG")
    asked = find_task(task).example.input | {"image": image}
    try:
        (output,) = model(kind, task).answer(task, asked)
    except ModelmillError as error:
        assert error.code is ErrorCode.INVALID_MEDIA  # noqa: PT017
    else:
        find_task(task).output.model_validate_json(output.model_dump_json())
