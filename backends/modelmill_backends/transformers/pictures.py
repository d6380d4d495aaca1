"""Images for models that write text about them: prepared one by one in threads, stacked on the device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelmill_backends.transformers.images import to_arrays
from modelmill_backends.transformers.weights import Loaded
from modelmill_tasks.shared.images import open_image

if TYPE_CHECKING:
    from numpy.typing import NDArray


def pixels_of(loaded: Loaded, source: str) -> NDArray[Any]:
    """``pixel_values`` of one image, ``[3, height, width]``.

    Raises:
        MediaError: it is not an image, or it is too narrow for the model.
    """
    pixels: NDArray[Any] = to_arrays(loaded.image_processor, open_image(source))["pixel_values"]
    return pixels


def stacked(loaded: Loaded, pixels: Sequence[NDArray[Any]]) -> Any:
    """A batch ``[n, 3, height, width]`` on the model's device, in the type of its weights."""
    return loaded.stacked_on_device(pixels).to(loaded.model.dtype)
