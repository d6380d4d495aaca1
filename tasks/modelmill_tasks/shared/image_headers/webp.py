"""WebP: its chunks, the size of its canvas or picture, and the number of frames."""

from __future__ import annotations

import struct

from modelmill_tasks.shared.image_headers.common import (
    MAX_EXIF_BYTES,
    MAX_PARTS,
    MAX_XMP_BYTES,
    Data,
    Frames,
    ImageHeader,
    damaged,
    orientation_of,
    too_many,
)


def read(data: Data, _max_pixels: int) -> ImageHeader:
    """Reads the chunks.

    Raises:
        MediaError: as all readers.
    """
    width, height = _size(data)
    exif = xmp = None
    frames, at = 0, 12
    for _ in range(MAX_PARTS):
        kind, length = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        if len(kind) < 4 or at + 8 > len(data):
            break
        body = at + 8
        frames += kind == b"ANMF"
        if kind == b"EXIF" and length <= MAX_EXIF_BYTES:
            exif = data[body : body + length]
        elif kind == b"XMP ":
            xmp = data[body : body + min(length, MAX_XMP_BYTES)]
        at = body + length + length % 2
    else:
        raise too_many("WebP", "chunks")
    return ImageHeader(
        width,
        height,
        pixels_only=lambda: data[:],
        frames=lambda: Frames(max(frames, 1)),
        orientation=orientation_of(exif, xmp),
    )


def _size(data: Data) -> tuple[int, int]:
    if len(data) < 30:
        raise damaged("WebP")
    kind = data[12:16]
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[24:27], "little"), 1 + int.from_bytes(data[27:30], "little")
    if kind == b"VP8L" and data[20] == 0x2F:
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 " and data[23:26] == b"\x9d\x01\x2a":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise damaged("WebP")
