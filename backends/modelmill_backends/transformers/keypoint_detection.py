"""Keypoint detection by VitPose. It takes one person at a time, so a detector finds the people first."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pydantic import Field

from modelmill.errors import ErrorCode, MediaError, ModelmillError
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.options import read_options
from modelmill_backends.shared.parts import load_part
from modelmill_backends.transformers.regions import labels_of, model_type, require_scipy
from modelmill_backends.transformers.weights import Loaded, TransformersOptions, load_pretrained
from modelmill_tasks.keypoint_detection import Input, Keypoint, KeypointObject, Output
from modelmill_tasks.object_detection import Config as DetectorConfig
from modelmill_tasks.object_detection import Input as DetectorInput
from modelmill_tasks.shared.images import open_image
from modelmill_tasks.shared.regions import Box

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

CHUNK = 64
"""The most people in one forward pass: a photo of a crowd shows a hundred."""
MIN_EDGE = 8
"""Pixels. The library misinterprets an image with fewer than four rows."""


class KeypointDetectionOptions(TransformersOptions):
    """Options of a catalogue entry, in addition to those of any model of this backend."""

    detector: str | None = Field(
        None, description="Catalogue entry that finds the people; default: the whole image is one person."
    )
    person_label: str = Field("person", description="The detector's label for people.")


@dataclass(frozen=True, slots=True)
class Estimator:
    """The model and its detector, if it has one."""

    pose: Loaded
    detector: Runner[Any, Any] | None
    options: KeypointDetectionOptions

    def close(self) -> None:
        self.pose.close()
        if callable(close := getattr(getattr(self.detector, "weights", None), "close", None)):
            close()


@dataclass(frozen=True, slots=True)
class Scene:
    """An image, prepared for the detector."""

    image: Image
    for_detector: Prepared[Any] | None


@dataclass(frozen=True, slots=True)
class People:
    """The people in one image."""

    boxes: list[Box]
    scores: list[float | None]
    """The detector's score for each person; None without a detector."""
    heatmaps: list[NDArray[np.float32]]
    """``[keypoints, h, w]`` for each person."""


class KeypointDetectionRunner(Runner[Input, Estimator]):
    """The people of all images of a batch share passes, at most ``CHUNK`` in each."""

    backend = "transformers"
    task = "keypoint-detection"

    def __init__(self, weights: Estimator, context: LoadContext) -> None:
        super().__init__(weights, context)
        config = weights.pose.model.config
        names = labels_of(weights.pose.model)
        # If a model names no labels, the library numbers them.
        unnamed = all(name == f"LABEL_{index}" for index, name in names.items())
        self._names = {} if unnamed else names
        self._experts = getattr(config.backbone_config, "num_experts", 1) > 1

    @classmethod
    def load(cls, context: LoadContext) -> Estimator:
        entry = context.entry
        options = read_options(entry, KeypointDetectionOptions)
        if (kind := model_type(entry)) != "vitpose":
            raise load_failed(entry, f"a {kind} does not find keypoints; supported is vitpose")
        common = {
            name: entry.options[name] for name in TransformersOptions.model_fields if name in entry.options
        }
        own = replace(context, entry=entry.model_copy(update={"options": common}))
        pose = load_pretrained(own, "VitPoseForPoseEstimation", images=True)
        require_scipy(entry, pose)
        try:
            return Estimator(pose, _load_detector(context, options), options)
        except ModelmillError:
            pose.close()
            raise

    def group_key(self, item: Input) -> Hashable:
        # Only the detector's postprocess and this runner's postprocess use the threshold.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        image = open_image(item.image)
        if min(image.size) < MIN_EDGE:
            raise MediaError(
                ErrorCode.INVALID_MEDIA,
                f"The image has {image.width} × {image.height} pixels; "
                f"keypoints need at least {MIN_EDGE} on each side.",
            )
        detector = self.weights.detector
        if detector is None:
            return Prepared(item, Scene(image, None))
        config = DetectorConfig(threshold=item.config.threshold)
        # Without pydantic's checks: these values are known to be valid.
        asked = DetectorInput.model_construct(image=item.image, config=config)
        return Prepared(item, Scene(image, detector.preprocess(asked)))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        scenes: list[Scene] = [prepared.data for prepared in batch]
        people = self._people(scenes)
        boxes = [(row, box) for row, found in enumerate(people) for box in found.boxes]
        for start in range(0, len(boxes), CHUNK):
            chunk = boxes[start : start + CHUNK]
            heatmaps = self._heatmaps([(scenes[row].image, box) for row, box in chunk])
            for (row, _), heatmap in zip(chunk, heatmaps, strict=True):
                people[row].heatmaps.append(heatmap)
        return people

    def postprocess(self, prepared: Prepared[Input], raw: People) -> Output:
        if not raw.boxes:
            return Output(objects=[])
        import numpy as np
        import torch

        outputs = SimpleNamespace(heatmaps=torch.from_numpy(np.stack(raw.heatmaps)))
        (poses,) = self.weights.pose.image_processor.post_process_pose_estimation(
            outputs, boxes=[[_coco(box) for box in raw.boxes]]
        )
        found = [
            self._object(box, score, pose)
            for box, score, pose in zip(raw.boxes, raw.scores, poses, strict=True)
        ]
        kept = [one for one in found if one.score > prepared.item.config.threshold]
        return Output(objects=sorted(kept, key=lambda one: -one.score))

    def _people(self, scenes: Sequence[Scene]) -> list[People]:
        detector = self.weights.detector
        if detector is None:
            return [
                People([Box(left=0, top=0, width=scene.image.width, height=scene.image.height)], [None], [])
                for scene in scenes
            ]
        batch: list[Any] = [scene.for_detector for scene in scenes]
        people = []
        for pair in zip(batch, detector.forward(batch), strict=True):
            output: Any = detector.postprocess(*pair)
            # A box of less than a pixel is not a person, and cannot be scaled up.
            found = [
                one
                for one in output.objects
                if one.label == self.weights.options.person_label and min(one.box.width, one.box.height) >= 1
            ]
            people.append(People([one.box for one in found], [one.score for one in found], []))
        return people

    def _heatmaps(self, chunk: Sequence[tuple[Image, Box]]) -> NDArray[np.float32]:
        import numpy as np
        import torch

        pose = self.weights.pose
        crops = [
            pose.image_processor(images=image, boxes=[[_coco(box)]], return_tensors="np")["pixel_values"][0]
            for image, box in chunk
        ]
        inputs = {"pixel_values": pose.stacked_on_device(crops).to(pose.model.dtype)}
        if self._experts:
            # VitPose+ was trained on several data sets; number 0 is COCO's people.
            inputs |= pose.to_device(dataset_index=np.zeros(len(crops), dtype=np.int64))
        with torch.inference_mode():
            heatmaps: NDArray[np.float32] = pose.model(**inputs).heatmaps.float().cpu().numpy()
        return heatmaps

    def _object(self, box: Box, score: float | None, pose: Any) -> KeypointObject:
        # The peak of a heatmap was trained to be a probability, but it can be outside 0 to 1.
        sure = pose["scores"].clamp(0, 1).reshape(-1).tolist()
        points = [
            Keypoint(x=x, y=y, v=v, name=self._names.get(index))
            for index, ((x, y), v) in enumerate(zip(pose["keypoints"].tolist(), sure, strict=True))
        ]
        mean = sum(sure) / len(sure)
        return KeypointObject(score=mean if score is None else score, box=box, keypoints=points)


def _coco(box: Box) -> list[float]:
    return [box.left, box.top, box.width, box.height]


def _load_detector(context: LoadContext, options: KeypointDetectionOptions) -> Runner[Any, Any] | None:
    name = options.detector
    if name is None:
        return None
    runner = load_part(context, "detector", name, "object-detection")
    labels = getattr(runner, "labels", None)
    if labels and options.person_label not in labels.values():
        raise load_failed(context.entry, f"option 'person_label': {name} knows no {options.person_label!r}")
    return runner
