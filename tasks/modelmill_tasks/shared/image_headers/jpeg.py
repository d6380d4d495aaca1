"""JPEG: segments up to the first scan, and the number of scans."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass, field

from modelmill_tasks.shared.image_headers.common import (
    MAX_PARTS,
    Data,
    ImageHeader,
    damaged,
    orientation_of,
    refused,
    too_many,
)

MAX_SCANS = 100
"""Each scan of a progressive image is one more pass over all its pixels. Encoders write about ten."""
MAX_SCANS_AT_FULL_SIZE = 30
"""For the largest image that is accepted. A smaller one may have more, so that the time stays the same."""
MAX_TABLE_BYTES = 64 * 1024
"""Tables before the first scan. The largest legal ones have 3 KiB; Pillow takes long over thousands."""

EOI, SOS, DQT, DHT, DAC, DRI, APP0, APP1, APP14 = 0xD9, 0xDA, 0xDB, 0xC4, 0xCC, 0xDD, 0xE0, 0xE1, 0xEE
COLORS = {APP0: b"JFIF", APP14: b"Adobe"}
TABLES = {DQT, DHT, DAC, DRI}
FRAMES = {0xC0, 0xC1, 0xC2, 0xC9, 0xCA}
PROGRESSIVE = {0xC2, 0xCA}
UNUSUAL = dict.fromkeys((0xC3, 0xCB), "lossless") | dict.fromkeys(
    (0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF, 0xDE, 0xDF), "hierarchical"
)
XMP = b"http://ns.adobe.com/xap/1.0/\0"

# A marker that a segment follows, or the end of the image. Other markers and fill bytes are passed over.
_MARKER = re.compile(rb"\xff([\x02-\xcf\xd9-\xfe])")


@dataclass(slots=True)
class _Head:
    """What the segments before the first scan say."""

    frame: tuple[int, bytes] | None = None
    """The marker and the body of the one that gives the size."""
    colors: dict[int, bytes] = field(default_factory=dict)
    """The segments that say which colors the components are."""
    tables: list[bytes] = field(default_factory=list)
    table_bytes: int = 0
    exif: bytes | None = None
    xmp: bytes | None = None

    def take(self, marker: int, segment: bytes) -> None:
        """Notes one segment. ``segment`` begins with its marker."""
        body = segment[4:]
        if marker in FRAMES:
            if self.frame is not None:
                raise damaged("JPEG")
            self.frame = marker, body
            self.tables.append(segment)
        elif marker in TABLES:
            self.table_bytes += len(segment)
            if self.table_bytes > MAX_TABLE_BYTES:
                raise refused("The JPEG image has more than 64 KiB of tables before its first scan.")
            self.tables.append(segment)
        elif marker in UNUSUAL:
            raise refused(f"This is a {UNUSUAL[marker]} JPEG image; save it as a baseline one.")
        elif marker in (APP0, APP1, APP14):
            self._take_application(marker, segment, body)

    def _take_application(self, marker: int, segment: bytes, body: bytes) -> None:
        if body.startswith(COLORS.get(marker, b"\0none")):
            self.colors[marker] = segment
        elif self.exif is None and body.startswith(b"Exif\0\0"):
            self.exif = body
        elif self.xmp is None and body.startswith(XMP):
            self.xmp = body


def read(data: Data, max_pixels: int) -> ImageHeader:
    """Reads the segments before the first scan. Counts scans only where the decoder reads several.

    Raises:
        MediaError: as all readers.
    """
    head, at = _Head(), 2
    for _ in range(MAX_PARTS):
        marker, start, end = _next_segment(data, at)
        if marker == SOS:
            break
        head.take(marker, data[start - 2 : end])
        at = end
    else:
        raise too_many("JPEG", "segments before its first scan")
    if head.frame is None:
        raise damaged("JPEG")
    width, height = _size(head.frame[1])
    first_scan = data[start + 2 : end]
    if head.frame[0] in PROGRESSIVE or (first_scan and first_scan[0] < head.frame[1][5]):
        _check_scans(data, start - 2, width * height, max_pixels)
    return ImageHeader(
        width,
        height,
        pixels_only=lambda: b"".join((b"\xff\xd8", *head.colors.values(), *head.tables, data[start - 2 :])),
        orientation=orientation_of(head.exif, head.xmp),
    )


def _next_segment(data: Data, at: int) -> tuple[int, int, int]:
    """The next marker, the place of its length, and the segment's end. Bytes between are skipped."""
    found = _MARKER.search(data, at)
    if found is None or found[1][0] == EOI:
        raise damaged("JPEG")
    start = found.end()
    length = int.from_bytes(data[start : start + 2], "big")
    if length < 2 or start + length > len(data):
        raise damaged("JPEG")
    return found[1][0], start, start + length


def _size(frame: bytes) -> tuple[int, int]:
    if len(frame) < 6:
        raise damaged("JPEG")
    bits, height, width, components = struct.unpack_from(">BHHB", frame)
    if bits != 8:
        raise refused(f"The JPEG image has {bits} bits per sample; save it with 8.")
    if components not in (1, 3, 4):
        raise refused(f"The JPEG image has {components} color components; 1, 3 and 4 are accepted.")
    return width, height


def _check_scans(data: Data, at: int, pixels: int, max_pixels: int) -> None:
    limit = min(MAX_SCANS, MAX_SCANS_AT_FULL_SIZE * max_pixels // max(pixels, 1))
    # Scans within other segments, such as those of thumbnails, count here too: there are no more than that.
    if _occurrences(data, b"\xff\xda", at) <= limit:
        return
    scans = 0
    for _ in range(MAX_PARTS):
        found = _MARKER.search(data, at)
        if found is None or found[1][0] == EOI:
            return
        scans += found[1][0] == SOS
        if scans > limit:
            raise too_many("JPEG", "scans", limit)
        at = found.end()
        at += int.from_bytes(data[at : at + 2], "big")
    raise too_many("JPEG", "segments")


def _occurrences(data: Data, pattern: bytes, at: int) -> int:
    if isinstance(data, bytes):
        return data.count(pattern, at)
    step = 1024 * 1024
    return sum(data[place : place + step + 1].count(pattern) for place in range(at, len(data), step))
