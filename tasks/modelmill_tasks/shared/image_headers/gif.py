"""GIF: its blocks up to the first frame, and the number of frames."""

from __future__ import annotations

import struct

from modelmill.errors import MediaError
from modelmill_tasks.shared.image_headers.common import (
    MAX_PARTS,
    Data,
    Frames,
    ImageHeader,
    damaged,
    too_many,
)

EXTENSION, FRAME, CONTROL = 0x21, 0x2C, 0xF9


def read(data: Data, _max_pixels: int) -> ImageHeader:
    """Reads the blocks up to the first frame. The size is that of screen and frame together.

    Raises:
        MediaError: as all readers.
    """
    if len(data) < 13:
        raise damaged("GIF")
    width, height, flags = struct.unpack("<HHB", data[6:11])
    start = at = 13 + _palette_bytes(flags)
    control = b""
    steps = MAX_PARTS
    while data[at : at + 1] == bytes([EXTENSION]):
        end, steps = _after_blocks(data, at + 2, steps)
        if not steps:
            raise too_many("GIF", "blocks before its first frame")
        if data[at + 1] == CONTROL:
            control = data[at:end]
        at = end
    frame = data[at : at + 10]
    if len(frame) < 10 or frame[0] != FRAME:
        raise damaged("GIF")
    left, top, frame_width, frame_height = struct.unpack("<HHHH", frame[1:9])
    if not frame_width or not frame_height:
        raise damaged("GIF")
    return ImageHeader(
        max(width, left + frame_width),
        max(height, top + frame_height),
        pixels_only=lambda: data[:start] + control + data[at:],
        frames=lambda: _frames(data, at),
    )


def _palette_bytes(flags: int) -> int:
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def _after_blocks(data: Data, at: int, steps: int) -> tuple[int, int]:
    """The place after a row of sub-blocks, and the steps that are left; 0 if they did not suffice."""
    while steps:
        steps -= 1
        size = data[at : at + 1]
        if not size:
            raise damaged("GIF")
        at += 1 + size[0]
        if not size[0]:
            break
    return at, steps


def _frames(data: Data, at: int) -> Frames:
    """Counts from the first frame on. A file that ends early has the frames that it has."""
    count, steps = 0, MAX_PARTS
    try:
        while steps:
            kind = data[at : at + 1]
            if kind == bytes([EXTENSION]):
                at, steps = _after_blocks(data, at + 2, steps)
            elif kind == bytes([FRAME]) and len(data) >= at + 10:
                count += 1
                at, steps = _after_blocks(data, at + 11 + _palette_bytes(data[at + 9]), steps)
            else:
                return Frames(max(count, 1))
    except MediaError:
        return Frames(max(count, 1))
    return Frames(count, more=True)
