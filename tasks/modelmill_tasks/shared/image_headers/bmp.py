"""BMP: its two headers."""

from __future__ import annotations

import struct

from modelmill_tasks.shared.image_headers.common import Data, ImageHeader, damaged, too_large

HEADERS = (12, 16, 40, 52, 56, 64, 108, 124)
"""The sizes of the second header, which tell its version."""
DEPTHS = (1, 4, 8, 16, 24, 32)
RUN_LENGTHS = (1, 2)
MAX_RUN_LENGTH_PIXELS = 16_000_000
MAX_RUN_LENGTH_BYTES = 4_000_000
"""Pillow unpacks run lengths in Python, byte by byte."""


def read(data: Data, _max_pixels: int) -> ImageHeader:
    """Reads the headers.

    Raises:
        MediaError: as all readers.
    """
    if len(data) < 26:
        raise damaged("BMP")
    (size,) = struct.unpack("<I", data[14:18])
    if size not in HEADERS or len(data) < 14 + size:
        raise damaged("BMP")
    if size == 12:
        width, height, _, depth = struct.unpack("<HHHH", data[18:26])
        packing = 0
    else:
        width, height, _, depth = struct.unpack("<iiHH", data[18:30])
        packing = int.from_bytes(data[30:34], "little") if size > 16 else 0
    # Rows that go down are told by a negative height.
    height = abs(height)
    if width <= 0 or depth not in DEPTHS:
        raise damaged("BMP")
    if packing in RUN_LENGTHS and (
        width * height > MAX_RUN_LENGTH_PIXELS or len(data) > MAX_RUN_LENGTH_BYTES
    ):
        raise too_large(
            "A BMP image that is packed as run lengths may have 16 million pixels and 4 MB. "
            "Save it without packing, or as PNG."
        )
    return ImageHeader(width, height, pixels_only=lambda: data[:])
