"""PNG: its chunks. Only those that make pixels reach the decoder."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass, field

from modelmill_tasks.shared.image_headers.common import (
    MAX_EXIF_BYTES,
    MAX_PARTS,
    MAX_XMP_BYTES,
    Data,
    Frames,
    ImageHeader,
    Samples,
    damaged,
    orientation_of,
    refused,
    too_many,
)

DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
"""Color type to the depths that it may have."""
PIXELS = {b"PLTE", b"IDAT"}
MAX_METADATA = dict.fromkeys((b"tEXt", b"zTXt", b"iTXt"), MAX_XMP_BYTES)
MAX_METADATA |= {b"tRNS": 256, b"acTL": 8, b"eXIf": MAX_EXIF_BYTES}
"""The chunks that are looked at, if they are no longer than that."""
XMP_KEY, RAW_EXIF_KEYS = b"XML:com.adobe.xmp", (b"Raw profile type exif", b"Raw profile type APP1")


@dataclass(slots=True)
class _Chunks:
    """What the chunks between header and end say."""

    pixels: list[tuple[int, int]] = field(default_factory=list)
    """Start and end of the chunks with the palette and the pixels."""
    has_others: bool = False
    has_data: bool = False
    transparency: bytes | None = None
    frames: int = 1
    exif: bytes | None = None
    xmp: bytes | None = None

    def take(self, kind: bytes, start: int, length: int, data: Data) -> None:
        """Notes one chunk. ``start`` is the place of its body."""
        if kind in PIXELS:
            self.pixels.append((start - 8, start + length + 4))
            self.has_data = self.has_data or kind == b"IDAT"
            return
        self.has_others = True
        if not kind.isalpha():
            raise damaged("PNG")
        if length > MAX_METADATA.get(kind, -1):
            return
        body = data[start : start + length]
        if kind == b"tRNS":
            self.transparency = body
        elif kind == b"acTL":
            self.frames = max(int.from_bytes(body[:4], "big"), 1)
        elif kind == b"eXIf":
            self.exif = self.exif or body
        else:
            exif, xmp = _metadata(kind, body)
            self.exif, self.xmp = self.exif or exif, self.xmp or xmp


def read(data: Data, _max_pixels: int) -> ImageHeader:
    """Reads the chunks. Texts and profiles may be of any size, also broken: nothing unpacks them.

    Raises:
        MediaError: as all readers.
    """
    if data[12:16] == b"CgBI":
        raise refused("This is a PNG image in Apple's own form (CgBI); save it as a standard PNG.")
    width, height, depth = _header(data)
    chunks, at = _Chunks(), 33
    for _ in range(MAX_PARTS):
        length, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        if kind == b"IEND" or len(kind) < 4:
            break
        chunks.take(kind, at + 8, length, data)
        at += 12 + length
    else:
        raise too_many("PNG", "chunks")
    if not chunks.has_data:
        raise damaged("PNG")
    return ImageHeader(
        width,
        height,
        pixels_only=lambda: _pixels_only(data, chunks, at),
        frames=lambda: Frames(chunks.frames),
        orientation=orientation_of(chunks.exif, chunks.xmp),
        samples=Samples(depth),
    )


def _pixels_only(data: Data, chunks: _Chunks, end_at: int) -> bytes:
    if not chunks.has_others and end_at + 12 >= len(data):
        return data[:]
    parts = [data[start:end] for start, end in chunks.pixels]
    if chunks.transparency is not None:
        # Its checksum is made anew, since a wrong one is no reason to refuse the image.
        first = next(place for place, part in enumerate(parts) if part[4:8] == b"IDAT")
        parts.insert(first, _chunk(b"tRNS", chunks.transparency))
    return b"".join((data[:33], *parts, data[end_at : end_at + 12]))


def _header(data: Data) -> tuple[int, int, int]:
    """Width, height and depth."""
    if len(data) < 33 or data[8:16] != b"\0\0\0\x0dIHDR":
        raise damaged("PNG")
    width, height, depth, color, packing, filtering, interlace = struct.unpack(">IIBBBBB", data[16:29])
    if depth not in DEPTHS.get(color, ()) or packing or filtering or interlace > 1:
        raise damaged("PNG")
    return width, height, depth


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(body, zlib.crc32(kind)))


def _metadata(kind: bytes, body: bytes) -> tuple[bytes | None, bytes | None]:
    """EXIF data and XMP that a text chunk holds."""
    key, _, rest = body.partition(b"\0")
    if key == XMP_KEY and kind == b"iTXt":
        packed, text = rest[:1], rest[2:].split(b"\0", 2)[-1]
        return None, _unpacked(text) if packed == b"\1" else text
    if key in RAW_EXIF_KEYS and kind != b"iTXt":
        # "\nexif\n", the number of bytes, and these in hexadecimal.
        text = _unpacked(rest[1:]) if kind == b"zTXt" else rest
        try:
            return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii")), None
        except ValueError:
            return None, None
    return None, None


def _unpacked(text: bytes) -> bytes:
    try:
        return zlib.decompressobj().decompress(text, MAX_XMP_BYTES)
    except zlib.error:
        return b""
