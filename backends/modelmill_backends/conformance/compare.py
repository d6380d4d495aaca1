"""Where two results differ."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

VOLATILE = frozenset({"created"})
"""Keys whose values depend on when a result is made."""
PIXEL_TOLERANCE = 2
"""Out of 255: rounding changes a pixel by so much if its value is computed in another order."""


def difference(found: Any, expected: Any, tolerance: float, path: str = "result") -> str | None:
    """The first place where ``found`` differs from ``expected``, in words; None if they agree.

    Numbers may differ by ``tolerance``, and above 1 by ``tolerance`` times their size. Images in data URLs
    are compared by pixel. Keys that ``expected`` does not have are not compared.
    """
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        for key in expected.keys() - VOLATILE:
            if key not in found:
                return f"{path} has no {key}"
            if said := difference(found[key], expected[key], tolerance, f"{path}.{key}"):
                return said
        return None
    if _is_list(expected) and _is_list(found):
        if len(found) != len(expected):
            return f"{path} has {len(found)} values, not {len(expected)}"
        pairs = enumerate(zip(found, expected, strict=True))
        each = (difference(one, other, tolerance, f"{path}[{index}]") for index, (one, other) in pairs)
        return next(filter(None, each), None)
    if _is_number(expected) and _is_number(found):
        close = math.isclose(found, expected, abs_tol=tolerance, rel_tol=tolerance)
        return None if close else f"{path} is {found}, not {expected}"
    if _is_image(expected) and _is_image(found):
        return _image_difference(found, expected, path)
    return None if found == expected else f"{path} is {found!r:.200}, not {expected!r:.200}"


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_image(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("data:image/")


def _image_difference(found: str, expected: str, path: str) -> str | None:
    import numpy as np
    from PIL import Image

    one, other = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))).astype(np.int16)
        for url in (found, expected)
    )
    if one.shape != other.shape:
        return f"{path} is an image of shape {one.shape}, not {other.shape}"
    most = int(np.abs(one - other).max()) if one.size else 0
    return None if most <= PIXEL_TOLERANCE else f"{path} is an image that differs by up to {most} of 255"
