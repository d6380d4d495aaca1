"""What the header readers of all image formats share."""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from modelmill.errors import ErrorCode, MediaError

Data = bytes | mmap.mmap
"""A whole file, which is read by place. A large upload is mapped, not read."""

MAX_PARTS = 100_000
"""Chunks, segments, boxes, strips, … of one file. A reader takes about a microsecond for each."""

ORIENTATION_TAG = 0x0112
MAX_EXIF_BYTES = 1024 * 1024
"""Larger EXIF data are not looked at."""
MAX_TAGS = 4096
"""Entries of a directory of TIFF or EXIF tags."""
MAX_XMP_BYTES = 256 * 1024
"""XMP is searched for an orientation up to here. The packet of a camera has a few kilobytes."""

_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')


@dataclass(frozen=True, slots=True)
class Frames:
    """How many frames or pages a file has.

    Attributes:
        count: Frames that were counted.
        more: Whether counting stopped early, so that there may be more.
    """

    count: int = 1
    more: bool = False


@dataclass(frozen=True, slots=True)
class Samples:
    """What the numbers of a picture mean.

    Attributes:
        bits: Of one sample of a grey picture.
        signed: Whether samples may be negative.
        inverted: Whether the largest value is black, and the decoder does not turn it.
    """

    bits: int = 8
    signed: bool = False
    inverted: bool = False


def _one_frame() -> Frames:
    return Frames()


@dataclass(frozen=True, slots=True)
class ImageHeader:
    """What a file says of its image.

    Attributes:
        width: In pixels, as stored: before any turn.
        height: As ``width``.
        pixels_only: Makes the file that the decoder gets: without texts, profiles and other parts that make
            no pixel, since decoders spend time and memory on them, and fail on broken ones.
        frames: Counts the frames. It may read the whole file, within a bound.
        orientation: As EXIF counts, 1 to 8. 1 for formats whose decoder turns the picture.
    """

    width: int
    height: int
    pixels_only: Callable[[], bytes]
    frames: Callable[[], Frames] = _one_frame
    orientation: int = 1
    samples: Samples = field(default=Samples())


def refused(message: str) -> MediaError:
    return MediaError(ErrorCode.INVALID_MEDIA, message)


def too_large(message: str) -> MediaError:
    return MediaError(ErrorCode.MEDIA_TOO_LARGE, message)


def too_many(form: str, what: str, limit: int = MAX_PARTS) -> MediaError:
    return too_large(f"The {form} image has more than {limit} {what}; that many are not accepted.")


def check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    """Refuses a size with more pixels than ``max_pixels``."""
    width, height = size
    if width * height > max_pixels:
        raise too_large(f"The image has {width} × {height} pixels; at most {max_pixels} pixels are accepted.")


def damaged(form: str) -> MediaError:
    return refused(f"The header of the {form} image is damaged or truncated.")


def orientation_of(exif: bytes | None, xmp: bytes | None = None) -> int:
    """The orientation that EXIF data give, else the one that XMP gives, else 1. Broken data give 1.

    Args:
        exif: A TIFF header and its directory, with or without ``Exif\\0\\0`` before it.
        xmp: An XMP packet.
    """
    found = _exif_orientation(exif.removeprefix(b"Exif\0\0")) if exif else None
    if found is None and xmp and (match := _XMP_ORIENTATION.search(xmp[:MAX_XMP_BYTES])):
        return int(match[1])
    return found if found is not None and 1 <= found <= 8 else 1


def _exif_orientation(exif: bytes) -> int | None:
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None or len(exif) < 8:
        return None
    (at,) = struct.unpack_from(f"{order}I", exif, 4)
    if at + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(f"{order}H", exif, at)
    for entry in range(at + 2, min(at + 2 + 12 * min(count, MAX_TAGS), len(exif) - 11), 12):
        tag, kind, length = struct.unpack_from(f"{order}HHI", exif, entry)
        if tag == ORIENTATION_TAG:
            number = {1: "B", 3: "H", 4: "I"}.get(kind)
            if number is None or length != 1:
                return None
            return int(struct.unpack_from(f"{order}{number}", exif, entry + 8)[0])
    return None
