"""Masks of an image, boolean arrays ``[height, width]``, as run lengths, PNGs and boxes."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelmill_tasks.shared.regions import PixelBox

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def encode_rle(mask: NDArray[np.bool_]) -> str:
    """COCO's uncompressed run lengths, column by column. The first number counts zeros and may be 0.

    Source: pycocotools' mask API, "uncompressed RLE", whose ``counts`` are these numbers.
    """
    import numpy as np

    pixels = mask.ravel(order="F")
    if pixels.size == 0:
        return "0"
    starts = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    counts = np.diff(starts, prepend=0, append=pixels.size).tolist()
    return ",".join(map(str, [0, *counts] if pixels[0] else counts))


def decode_rle(text: str, size: Sequence[int]) -> NDArray[np.bool_]:
    """The mask for run lengths of ``encode_rle``.

    Args:
        text: The run lengths.
        size: ``[height, width]``.

    Raises:
        ValueError: the run lengths do not cover an image of this size.
    """
    import numpy as np

    height, width = size
    counts = np.asarray([int(count) for count in text.split(",")], dtype=np.int64)
    if (counts < 0).any() or counts.sum() != height * width:
        raise ValueError(f"the run lengths cover {counts.sum()} pixels, not {height} × {width}")
    values = np.arange(len(counts)) % 2 == 1
    return np.repeat(values, counts).reshape(height, width, order="F")


def tight_box(mask: NDArray[np.bool_]) -> PixelBox:
    """The smallest box around a mask; all zeros for an empty one."""
    import numpy as np

    columns, rows = np.flatnonzero(mask.any(axis=0)), np.flatnonzero(mask.any(axis=1))
    if len(rows) == 0:
        return PixelBox(left=0, top=0, width=0, height=0)
    left, top = int(columns[0]), int(rows[0])
    return PixelBox(left=left, top=top, width=int(columns[-1]) - left + 1, height=int(rows[-1]) - top + 1)


def png_mask(mask: NDArray[np.bool_]) -> str:
    """The mask as an 8-bit PNG of one channel, 0 or 255, in a data URL."""
    import numpy as np

    return _png(mask.astype(np.uint8) * np.uint8(255))


def png_map(values: NDArray[np.floating[Any]]) -> tuple[str, float, float]:
    """A map of any numbers as a 16-bit PNG of one channel, in a data URL, with its minimum and maximum.

    A value is ``minimum + grey / 65535 * (maximum - minimum)``. If all values are equal, grey is 0.
    """
    import numpy as np

    low, high = float(values.min()), float(values.max())
    share = (values.astype(np.float64) - low) / (high - low if high > low else 1.0)
    return _png(np.rint(share * 65535).astype(np.uint16)), low, high


def _png(pixels: NDArray[Any]) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
