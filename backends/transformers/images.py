"""The library's image processors, one image at a time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from backends.image_settings import check_aspect

if TYPE_CHECKING:
    from PIL.Image import Image


def to_arrays(processor: Any, image: Image) -> dict[str, Any]:
    """The model's inputs for one RGB image, as numpy arrays without a batch axis.

    Raises:
        MediaError: ``invalid_media``: the processor keeps the aspect, and the image is too narrow for that.
    """
    size = getattr(processor, "size", None)
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else getattr(size, "shortest_edge", None)
    if edge is not None:
        check_aspect(image)
    return {name: values[0] for name, values in processor(images=image, return_tensors="np").items()}


def stack(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Inputs of several images, with a batch axis."""
    import numpy as np

    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}
