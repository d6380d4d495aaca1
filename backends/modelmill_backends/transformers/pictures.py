"""Images whose content a decoder describes: prepared one at a time in threads, stacked on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelmill_backends.transformers.images import to_arrays
from modelmill_backends.transformers.weights import Loaded
from modelmill_tasks.shared.images import open_image

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pixels_of(loaded: Loaded, source: str) -> NDArray[Any]:
    """``pixel_values`` of one image ``[3, height, width]``.

    Raises:
        MediaError: it is no image, or too narrow for the model.
    """
    pixels: NDArray[Any] = to_arrays(loaded.image_processor, open_image(source))["pixel_values"]
    return pixels


def stacked(loaded: Loaded, pixels: Sequence[NDArray[Any]]) -> Any:
    """``[n, 3, height, width]`` in the type of the model's weights, on its device."""
    return loaded.stacked_on_device(pixels).to(loaded.model.dtype)
