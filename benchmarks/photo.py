"""The photo that every system is sent."""

from __future__ import annotations

import base64
import io
import json
from functools import cache
from importlib.resources import files

SIZE = (640, 426)
TARGET_BYTES = 60_000
CLASSES = ["cat", "dog", "bird", "car", "cup of coffee"]


@cache
def photo() -> bytes:
    """A JPEG of about 60 KB: the demo's photo at 640 × 426, at the quality that comes nearest from below."""
    from PIL import Image

    with Image.open(io.BytesIO((files("modelmill") / "data" / "chelsea.jpg").read_bytes())) as image:
        larger = image.resize(SIZE, Image.Resampling.BICUBIC)
    encoded = b""
    for quality in range(70, 100):
        buffer = io.BytesIO()
        larger.save(buffer, "JPEG", quality=quality)
        if buffer.tell() > TARGET_BYTES:
            break
        encoded = buffer.getvalue()
    return encoded


@cache
def inputs() -> dict[str, object]:
    """One job's input of zero-shot-image-classification."""
    url = "data:image/jpeg;base64," + base64.b64encode(photo()).decode()
    return {"image": url, "classes": CLASSES}


@cache
def body() -> bytes:
    """The same as the JSON that is sent."""
    return json.dumps(inputs()).encode()
