"""EfficientNet-Lite0 on ONNX Runtime: from photos to probabilities of ImageNet's 1000 classes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import LoadContext
from modelmill_backends.onnx.export import open_exported
from modelmill_backends.shared.numerics import softmax
from modelmill_backends.source import locate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

IMAGE_SIZE = 224
# Training cropped 224 of 256 pixels; mean and deviation belong to the published weights.
CROP = 0.875
MEAN, DEVIATION = 127.0, 128.0


@cache
def labels() -> tuple[str, ...]:
    """ImageNet's 1000 class names, in the order of the network's outputs."""
    text = (files("modelmill_backends") / "data" / "imagenet_1k_labels.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def pixels(image: Image) -> NDArray[np.float32]:
    """The centre of an RGB image as ``[3, 224, 224]``, values from about -1 to 1."""
    import numpy as np
    from PIL.Image import Resampling

    width, height = image.size
    side = min(width, height) * CROP
    left, top = (width - side) / 2, (height - side) / 2
    square = image.resize(
        (IMAGE_SIZE, IMAGE_SIZE), Resampling.BICUBIC, box=(left, top, left + side, top + side)
    )
    # Channels move to the front as bytes, and the later steps are in place.
    values = np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1)).astype(np.float32)
    values -= MEAN
    values /= DEVIATION
    return values


class Classifier:
    """The loaded network."""

    def __init__(self, session: Any) -> None:
        self.session = session

    @classmethod
    def load(cls, context: LoadContext) -> Classifier:
        """Opens the ONNX export of the entry's ``.pth``. If there is none yet, it is made first."""
        weights = locate(context.entry)
        return cls(open_exported(context, weights, "modelmill_backends.onnx.efficientnet_lite:to_export"))

    def probabilities(self, batch: Sequence[NDArray[np.float32]]) -> NDArray[np.float64]:
        """Probabilities ``[n, 1000]`` of images from ``pixels``."""
        import numpy as np

        (logits,) = self.session.run(["logits"], {"pixels": np.stack(batch)})
        return softmax(logits)
