"""Object detection by YOLO models (v8 and later), as Ultralytics exports them to ONNX."""

from __future__ import annotations

import ast
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from modelmill.catalogue import ModelEntry
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.onnx.session import feed_dtype, open_session
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.shared.detail import warn_of_scaling
from modelmill_backends.source import locate
from modelmill_tasks.object_detection import Input, Output
from modelmill_tasks.shared.images import open_image
from modelmill_tasks.shared.regions import MAX_OBJECTS, Box, DetectedObject

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

GREY = 114
"""The model was trained with this grey around an image that is not square."""
CANDIDATES = 3000
"""At most so many boxes are compared with each other: those with the best scores."""


class YoloOptions(RunnerOptions):
    """Options of a catalogue entry."""

    size: int = Field(
        640, ge=32, le=4096, description="Edge of the model's input in pixels, if its file does not fix it."
    )
    labels: tuple[str, ...] | None = Field(
        None, description="Names of the labels, by index; default: the names in the model's file."
    )
    iou: float = Field(
        0.7, ge=0, le=1, description="If boxes of one label overlap more than this, only the best stays."
    )


@dataclass(frozen=True, slots=True)
class Yolo:
    """The loaded network, with facts from its file."""

    session: Any
    name: str
    """Name of its input."""
    dtype: str
    size: int
    labels: tuple[str, ...]
    batches: bool
    """Whether it takes more than one image at a time."""
    options: YoloOptions


@dataclass(frozen=True, slots=True)
class Letterbox:
    """An image scaled into the middle of a square, and the numbers that convert positions back."""

    pixels: NDArray[np.float32]
    """``[3, size, size]``, 0 to 1."""
    scale: float
    left: int
    top: int
    width: int
    """Width of the oriented original, in pixels."""
    height: int


class YoloRunner(Runner[Input, Yolo]):
    """Expects one output ``[n, 4 + labels, anchors]``: centre and size in pixels, then scores."""

    backend = "onnx"
    task = "object-detection"
    name = "yolo"

    def __init__(self, weights: Yolo, context: LoadContext) -> None:
        super().__init__(weights, context)
        self.labels = dict(enumerate(weights.labels))
        """The labels that it can find, by the model's index."""

    @classmethod
    def load(cls, context: LoadContext) -> Yolo:
        options = read_options(context.entry, YoloOptions)
        session = open_session(_model_file(context.entry), context)
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or len(outputs[0].shape) != 3:
            raise load_failed(
                context.entry,
                "it is not a YOLO as Ultralytics exports it: one input [n, 3, height, width] and "
                "one output [n, 4 + labels, anchors], without nms in the file",
            )
        batch, _, height, width = inputs[0].shape
        if height != width:
            raise load_failed(context.entry, f"its input of {width} × {height} is not square")
        labels = options.labels or _labels_in(session)
        rows = outputs[0].shape[1]
        if not labels or (isinstance(rows, int) and rows != 4 + len(labels)):
            found = f"{rows - 4} labels" if isinstance(rows, int) else "labels"
            raise load_failed(
                context.entry, f"it has {found}, and {len(labels)} names for them; set option 'labels'"
            )
        return Yolo(
            session,
            inputs[0].name,
            feed_dtype(session, inputs[0].name),
            height if isinstance(height, int) else options.size,
            labels,
            batch != 1,
            options,
        )

    def group_key(self, item: Input) -> Hashable:
        # Only postprocess uses threshold and top_k.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        return Prepared(item, letterboxed(open_image(item.image), self.weights.size))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        import numpy as np

        yolo = self.weights
        pixels = [prepared.data.pixels for prepared in batch]
        passes = [pixels] if yolo.batches else [[one] for one in pixels]
        found: list[Any] = []
        for images in passes:
            (rows,) = yolo.session.run(None, {yolo.name: np.stack(images).astype(yolo.dtype, copy=False)})
            found += list(rows.astype(np.float32, copy=False))
        return found

    def postprocess(self, prepared: Prepared[Input], raw: NDArray[np.float32]) -> Output:
        import numpy as np

        config, image = prepared.item.config, prepared.data
        label, score = raw[4:].argmax(axis=0), raw[4:].max(axis=0)
        places = np.flatnonzero(score > config.threshold)
        places = places[np.argsort(-score[places], kind="stable")][:CANDIDATES]
        boxes = _corners(raw[:4, places], image)
        objects: list[DetectedObject] = []
        for row in kept_boxes(boxes, label[places], self.weights.options.iou):
            left, top, right, lower = boxes[row].tolist()
            if right > left and lower > top and len(objects) < (config.top_k or MAX_OBJECTS):
                box = Box(left=left, top=top, width=right - left, height=lower - top)
                place = places[row]
                name = self.labels[int(label[place])]
                objects.append(DetectedObject(label=name, score=min(float(score[place]), 1.0), box=box))
        return Output(objects=objects)


def letterboxed(image: Image, size: int) -> Letterbox:
    """Scales an RGB image into the middle of a grey square with sides of ``size`` pixels."""
    import numpy as np
    from PIL.Image import Resampling

    scale = min(size / image.width, size / image.height)
    width, height = (max(1, round(edge * scale)) for edge in image.size)
    warn_of_scaling(image.size, (width, height))
    left, top = (size - width) // 2, (size - height) // 2
    square = np.full((size, size, 3), GREY, dtype=np.uint8)
    scaled = np.asarray(image.resize((width, height), Resampling.BILINEAR))
    square[top : top + height, left : left + width] = scaled
    pixels = np.ascontiguousarray(square.transpose(2, 0, 1)).astype(np.float32) / np.float32(255)
    return Letterbox(pixels, scale, left, top, image.width, image.height)


def kept_boxes(boxes: NDArray[np.float32], labels: NDArray[np.integer[Any]], iou: float) -> list[int]:
    """Non-maximum suppression: the rows that overlap no better row of the same label by more than ``iou``.

    Args:
        boxes: ``[n, 4]``, corners (left, top, right, lower), best first.
        labels: ``[n]``.
        iou: Intersection over union.
    """
    import numpy as np

    areas = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1)
    waiting = np.arange(len(boxes))
    kept: list[int] = []
    while len(waiting):
        best, rest = waiting[0], waiting[1:]
        kept.append(int(best))
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        shared = np.prod(sides.clip(0), axis=1)
        covered = shared > iou * (areas[best] + areas[rest] - shared)
        waiting = rest[~(covered & (labels[rest] == labels[best]))]
    return kept


def _corners(rows: NDArray[np.float32], image: Letterbox) -> NDArray[np.float32]:
    """Boxes ``[4, n]`` of the square as corners ``[n, 4]`` in pixels of the image, clipped to the image."""
    import numpy as np

    centre, half = rows[:2].T, rows[2:].T / 2
    offset = np.asarray([image.left, image.top], dtype=np.float32)
    edge = np.asarray([image.width, image.height], dtype=np.float32)
    both = [((centre + sign * half - offset) / image.scale).clip(0, edge) for sign in (-1, 1)]
    found: NDArray[np.float32] = np.concatenate(both, axis=1)
    return found


def _model_file(entry: ModelEntry) -> Path:
    path = locate(entry, ("*.onnx",))
    files = [path] if path.is_file() else sorted(path.rglob("*.onnx"))
    if len(files) != 1:
        raise load_failed(entry, f"its source holds {len(files)} ONNX files; one is needed")
    return files[0]


def _labels_in(session: Any) -> tuple[str, ...]:
    """The labels that the exporter wrote into the file: ``{0: 'person', 1: 'bicycle', …}``."""
    text = session.get_modelmeta().custom_metadata_map.get("names", "")
    try:
        names = ast.literal_eval(text) if text else {}
    except (ValueError, SyntaxError):
        return ()
    if not isinstance(names, dict) or sorted(names) != list(range(len(names))):
        return ()
    return tuple(str(names[index]) for index in range(len(names)))
