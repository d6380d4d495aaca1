"""Face embedding by a YuNet detector and an SFace or ArcFace recognizer."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import pydantic

from modelmill.catalogue import Source
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.onnx.faces import DETECTION_SIZE, STRIDES, Detections, aligned, decode, fitted, run
from modelmill_backends.onnx.session import open_session
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.shared.numerics import normalise
from modelmill_backends.source import locate
from modelmill_tasks.face_embedding import Face, Input, Output
from modelmill_tasks.shared.images import open_image
from modelmill_tasks.shared.regions import Box

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

DETECTOR_OUTPUTS = {f"{name}_{stride}" for name in ("cls", "obj", "bbox", "kps") for stride in STRIDES}


class FaceEmbeddingOptions(RunnerOptions):
    """Options of a catalogue entry."""

    detector: str = pydantic.Field("face_detection_yunet_2023mar.onnx", description="File of YuNet.")
    detector_hub: str | None = pydantic.Field(
        None, description="Hub repository with the detector; default: the entry's own source."
    )
    recognizer: str = "face_recognition_sface_2021dec.onnx"
    input_range: Literal["0..255", "-1..1"] = pydantic.Field(
        "0..255", description="Range of the recognizer's input: 0..255 for SFace, -1..1 for ArcFace."
    )


@dataclass(frozen=True, slots=True)
class FaceModels:
    """The two sessions, and the height and width of the detector's input."""

    detector: Any
    recognizer: Any
    size: tuple[int, int]
    options: FaceEmbeddingOptions


@dataclass(frozen=True, slots=True)
class Picture:
    """An image, and the detector's input made from it: ``[3, height, width]``, scaled by ``scale``."""

    image: Image
    planes: NDArray[Any]
    scale: float


class FaceEmbeddingRunner(Runner[Input, FaceModels]):
    """Searches all images of a batch first, then turns the faces of all images into vectors.

    Vectors have length 1, unless the caller asks for the recognizer's own length.
    """

    backend = "onnx"
    task = "face-embedding"

    @classmethod
    def load(cls, context: LoadContext) -> FaceModels:
        entry, options = context.entry, read_options(context.entry, FaceEmbeddingOptions)
        hub = options.detector_hub
        detector_entry = entry.model_copy(update={"source": Source(hub=hub)}) if hub else entry
        sessions = []
        for owner, name in ((detector_entry, options.detector), (entry, options.recognizer)):
            file = locate(owner, ("*.onnx",)) / name
            if not file.is_file():
                raise load_failed(entry, f"its folder holds no {name}")
            sessions.append(open_session(file, context))
        detector, recognizer = sessions
        missing = DETECTOR_OUTPUTS.difference(output.name for output in detector.get_outputs())
        if missing:
            raise load_failed(
                entry, f"its detector is not a YuNet: it has no output {', '.join(sorted(missing))}"
            )
        height, width = detector.get_inputs()[0].shape[2:]
        fixed = isinstance(height, int) and isinstance(width, int)
        size = (height, width) if fixed else (DETECTION_SIZE, DETECTION_SIZE)
        return FaceModels(detector, recognizer, size, options)

    def group_key(self, item: Input) -> Hashable:
        # forward applies each image's own threshold; only postprocess uses normalize.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        import numpy as np

        image = open_image(item.image)
        pixels, scale = fitted(image, self.weights.size)
        # The detector was trained with blue as the first channel.
        planes = np.ascontiguousarray(pixels[:, :, ::-1].transpose(2, 0, 1))
        return Prepared(item, Picture(image, planes, scale))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        marked = run(self.weights.detector, [prepared.data.planes for prepared in batch])
        found = [
            decode(outputs, self.weights.size[1], prepared.item.config.threshold)
            for prepared, outputs in zip(batch, marked, strict=True)
        ]
        faces = [
            self._face(prepared.data, landmarks)
            for prepared, detections in zip(batch, found, strict=True)
            for landmarks in detections.landmarks
        ]
        vectors = iter([next(iter(outputs.values())) for outputs in run(self.weights.recognizer, faces)])
        return [(detections, [next(vectors) for _ in detections.scores]) for detections in found]

    def postprocess(self, prepared: Prepared[Input], raw: tuple[Detections, list[Any]]) -> Output:
        detections, vectors = raw
        scale, asked = prepared.data.scale, prepared.item.config.normalize
        faces = []
        for score, box, vector in zip(detections.scores, detections.boxes, vectors, strict=True):
            left, top, width, height = (box / scale).tolist()
            values = vector if asked is False else normalise(vector)
            faces.append(
                Face(
                    score=float(score),
                    box=Box(left=left, top=top, width=width, height=height),
                    embedding=values.tolist(),
                )
            )
        return Output(faces=faces)

    def _face(self, picture: Picture, landmarks: Any) -> Any:
        pixels = aligned(picture.image, landmarks / picture.scale).transpose(2, 0, 1).astype("float32")
        return pixels if self.weights.options.input_range == "0..255" else pixels / 127.5 - 1
