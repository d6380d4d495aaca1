"""Images for models of ``transformers``: prepared one by one in threads, then batched on the device."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from modelmill_backends.shared.image_settings import (
    ImageSettings,
    UnknownStepsError,
    check_aspect,
    image_settings,
)
from modelmill_backends.transformers.weights import Loaded

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image


class ImageInputs:
    """The inputs of a model that takes images.

    If the processor's steps are known, images stay bytes until they are on the device and are normalised
    there: a quarter of the data is copied, and the CPU has no arithmetic to do. Any other processor prepares
    the images itself, one at a time.
    """

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded
        self._settings = _settings_of(loaded.image_processor)
        if self._settings is not None:
            import torch

            name = loaded.device.torch_name
            self._scale, self._shift = (torch.from_numpy(part).to(name) for part in self._settings.affine())

    def prepare(self, image: Image) -> dict[str, NDArray[Any]]:
        """The input of ``run`` for one RGB image. Runs in threads.

        Raises:
            MediaError: ``invalid_media``: the aspect ratio is kept, and the image is too narrow for that.
        """
        if self._settings is None:
            return to_arrays(self._loaded.image_processor, image)
        return {"pixel_values": self._settings.cropped(image)}

    def run(
        self, prepared: Sequence[Mapping[str, NDArray[Any]]], model: Callable[..., Any]
    ) -> NDArray[np.float32]:
        """The row of ``model``'s result for each image, in order.

        Images of one shape share a pass.
        """
        import numpy as np
        import torch

        shapes: dict[Hashable, list[int]] = {}
        for row, arrays in enumerate(prepared):
            shapes.setdefault(tuple(array.shape for array in arrays.values()), []).append(row)
        with torch.inference_mode():
            found = [
                model(**self._on_device([prepared[row] for row in rows])).float() for rows in shapes.values()
            ]
            # This waits for the device, so it comes after all passes are queued there.
            results = np.concatenate([tensor.cpu().numpy() for tensor in found])
        if len(shapes) == 1:
            return results
        order = np.concatenate(list(shapes.values()))
        return results[np.argsort(order)]

    def _on_device(self, prepared: Sequence[Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
        inputs = {
            name: self._loaded.stacked_on_device([arrays[name] for arrays in prepared])
            for name in prepared[0]
        }
        if self._settings is not None:
            inputs["pixel_values"] = self._normalised(inputs["pixel_values"])
        return self._loaded.in_model_dtype(inputs)

    def _normalised(self, raw: Any) -> Any:
        """Bytes ``[n, height, width, 3]`` as normalised single precision, ``[n, 3, height, width]``."""
        import torch

        # Channels move to the front first: otherwise the arithmetic is several times slower on a CPU.
        values = raw.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
        return values.mul_(self._scale).add_(self._shift)


def to_arrays(processor: Any, image: Image) -> dict[str, Any]:
    """The model's inputs for one RGB image from the library's processor, without a batch axis.

    Raises:
        MediaError: ``invalid_media``: the processor keeps the aspect ratio, and the image is too narrow.
    """
    size = getattr(processor, "size", None)
    edge = size.get("shortest_edge") if isinstance(size, Mapping) else getattr(size, "shortest_edge", None)
    if edge is not None:
        check_aspect(image)
    return {name: values[0] for name, values in processor(images=image, return_tensors="np").items()}


def _settings_of(processor: Any) -> ImageSettings | None:
    if not type(processor).__module__.startswith("transformers."):
        # Code that came with the weights may do other steps, even if its class has a known name.
        return None
    try:
        # Not the file itself, which may leave out values that are the class's default.
        return image_settings(processor.to_dict())
    except UnknownStepsError:
        return None
