"""Helpers of the runners that find regions of images: inputs for images of any shape, outputs by name."""

from __future__ import annotations

import heapq
import inspect
import json
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from modelmill.catalogue import ModelEntry
from modelmill.errors import ErrorCode, MediaError, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.failures import load_failed, module_missing
from modelmill_backends.shared.detail import warn_of_scaling
from modelmill_backends.source import locate
from modelmill_backends.transformers.images import to_arrays
from modelmill_backends.transformers.weights import Loaded, load_pretrained
from modelmill_tasks.shared.images import open_image
from modelmill_tasks.shared.regions import MAX_OBJECTS, Box, DetectedObject

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class SeenImage:
    """An image, prepared for a model."""

    arrays: dict[str, NDArray[Any]]
    """The model's inputs by name, without a batch axis."""
    height: int
    """Height of the oriented original, in pixels."""
    width: int

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the oriented original."""
        return self.height, self.width


RawOutputs = dict[str, "NDArray[np.float32]"]
"""The model's outputs for one image by name, without a batch axis."""


class RegionInputs:
    """Prepares images one at a time with the library's processor, and runs images of one shape as a batch.

    Images of different shapes do not share a pass. They could if they were padded to one shape, but the
    padding would change the results near it: the masks affect a DETR's attention but not its convolutions,
    and YOLOS has no masks.
    """

    def __init__(self, loaded: Loaded, outputs: Sequence[str]) -> None:
        self._loaded = loaded
        self._outputs = outputs
        self._wanted = inspect.signature(loaded.model.forward).parameters.keys()

    def prepare(self, source: str) -> SeenImage:
        """Decodes a media field. Runs in threads.

        Raises:
            MediaError: it is not an image, or it is damaged or too narrow for the model.
        """
        image = open_image(source)
        try:
            arrays = to_arrays(self._loaded.image_processor, image)
        except ValueError:
            # A processor that keeps the aspect ratio would scale a very narrow image to a width of 0.
            raise MediaError(
                ErrorCode.INVALID_MEDIA,
                f"The image has {image.width} × {image.height} pixels, "
                "which cannot be scaled to the size that this model needs.",
            ) from None
        warn_of_scaling(image.size, _seen_size(self._loaded.image_processor, arrays, image.size))
        seen = {name: array for name, array in arrays.items() if name in self._wanted}
        return SeenImage(seen, image.height, image.width)

    def run(
        self,
        images: Sequence[SeenImage],
        call: Callable[[list[int], dict[str, Any]], Mapping[str, Any]] | None = None,
    ) -> list[RawOutputs]:
        """The named outputs of each image, in order, in single precision.

        Args:
            images: Results of ``prepare``.
            call: Positions of the images of one pass, and their inputs → the outputs. Default: the model.
        """
        import torch

        results: list[RawOutputs] = [{} for _ in images]
        with torch.inference_mode():
            for rows in same_shapes(images):
                inputs = self.on_device([images[row] for row in rows])
                found = self._loaded.model(**inputs) if call is None else call(rows, inputs)
                for name in self._outputs:
                    if found.get(name) is not None:
                        for row, array in zip(rows, found[name].float().cpu().numpy(), strict=True):
                            results[row][name] = array
        return results

    def on_device(self, images: Sequence[SeenImage]) -> dict[str, Any]:
        """The inputs of images of one shape, as tensors with a batch axis."""
        inputs = {
            name: self._loaded.stacked_on_device([image.arrays[name] for image in images])
            for name in images[0].arrays
        }
        return self._loaded.in_model_dtype(inputs)


def same_shapes(images: Sequence[SeenImage]) -> Iterable[list[int]]:
    """Positions of the images that share a pass, because their inputs have the same shapes."""
    shapes: dict[Hashable, list[int]] = {}
    for row, image in enumerate(images):
        shapes.setdefault(tuple(array.shape for array in image.arrays.values()), []).append(row)
    return shapes.values()


def require_numbers(raw: RawOutputs) -> None:
    """Refuses an answer that contains NaN: NaN is above no threshold, so the result would be empty.

    Raises:
        ModelmillError: ``inference_failed``.
    """
    import numpy as np

    if any(np.isnan(array).any() for array in raw.values()):
        raise ModelmillError(
            ErrorCode.INFERENCE_FAILED,
            "The model's answer holds values that are not numbers. Half precision may cause this: "
            'set options = { dtype = "float32" } in its catalogue entry.',
        )


def as_outputs(raw: RawOutputs) -> Any:
    """One image's outputs as the library's processors take them: attributes, with a batch axis.

    Raises:
        ModelmillError: ``inference_failed``, as ``require_numbers``.
    """
    import torch

    require_numbers(raw)
    return SimpleNamespace(**{name: torch.from_numpy(array)[None] for name, array in raw.items()})


def detected(
    found: Iterable[tuple[float, str, Sequence[float]]], image: SeenImage, top_k: int | None
) -> list[DetectedObject]:
    """The objects of an answer, best first.

    Args:
        found: Score, label and corners (left, top, right, lower) in pixels.
        image: Boxes are clipped to this image. Objects outside it, as in OWLv2's padding, are left out.
        top_k: The largest number of objects; None means ``MAX_OBJECTS``.
    """
    inside = ((score, label, _clipped(corners, image)) for score, label, corners in found)
    seen = (one for one in inside if one[2][2] > one[2][0] and one[2][3] > one[2][1])
    best = heapq.nlargest(top_k or MAX_OBJECTS, seen, key=lambda one: one[0])
    return [
        DetectedObject(
            label=label, score=score, box=Box(left=left, top=top, width=right - left, height=lower - top)
        )
        for score, label, (left, top, right, lower) in best
    ]


def _clipped(corners: Sequence[float], image: SeenImage) -> tuple[float, float, float, float]:
    left, top, right, lower = corners
    return max(left, 0.0), max(top, 0.0), min(right, image.width), min(lower, image.height)


def labels_of(model: Any) -> dict[int, str]:
    """The model's labels by index."""
    return {int(index): str(label) for index, label in model.config.id2label.items()}


def load_for_images(context: LoadContext, auto_class: str, method: str, lack: str) -> Loaded:
    """Loads a model whose image processor must also turn the model's answer into results.

    Args:
        context: The model's.
        auto_class: As in ``load_pretrained``.
        method: The processor's method that does so.
        lack: The ability that a processor without this method lacks, for the message.

    Raises:
        ModelmillError: ``model_load_failed``: as ``load_pretrained``, or the processor has no such method.
    """
    loaded = load_pretrained(context, auto_class, images=True)
    if not hasattr(loaded.image_processor, method):
        kind = type(loaded.image_processor).__name__
        loaded.close()
        raise load_failed(context.entry, f"a {kind} does not {lack}")
    return loaded


def model_type(entry: ModelEntry) -> str:
    """The architecture that the entry's ``config.json`` names. Does not fetch the weights.

    Raises:
        ModelmillError: ``model_load_failed``: no source, or the hub cannot be reached.
    """
    settings = locate(entry, ()) / "config.json"
    found = json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    return str(found.get("model_type", "model of unknown type"))


def require_scipy(entry: ModelEntry, loaded: Loaded) -> None:
    """Checks that scipy is installed, for processors that resize with it. The library does not check it.

    Raises:
        ModelmillError: ``model_load_failed``.
    """
    if find_spec("scipy") is None:
        loaded.close()
        raise module_missing(entry, "scipy")


def _seen_size(processor: Any, arrays: Mapping[str, NDArray[Any]], size: tuple[int, int]) -> tuple[int, int]:
    """Width and height of the part of the model's input that shows a picture of this size."""
    height, width = arrays["pixel_values"].shape[-2:]
    mask = arrays.get("pixel_mask")
    if mask is not None:
        return int(mask.any(axis=0).sum()), int(mask.any(axis=1).sum())
    if getattr(processor, "do_pad", False):
        # The processor has padded the picture, and does not say where.
        scale = min(width / size[0], height / size[1])
        return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))
    return int(width), int(height)
