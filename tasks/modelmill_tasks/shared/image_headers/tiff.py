"""TIFF and BigTIFF: the first directory of tags, its strips or tiles, and the number of pages."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from modelmill.errors import MediaError
from modelmill_tasks.shared.image_headers.common import (
    MAX_PARTS,
    MAX_TAGS,
    Data,
    Frames,
    ImageHeader,
    Samples,
    damaged,
    refused,
    too_large,
    too_many,
)

MAX_PAGES = 1000
"""Pages that are counted. Only the first is decoded."""
MAX_VALUES = 1024
"""Values of one tag, apart from the tags below."""

SUBFILE, WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC = 254, 256, 257, 258, 259, 262
STRIP_OFFSETS, ORIENTATION, SAMPLES, ROWS_PER_STRIP, STRIP_BYTES, PLANES = 273, 274, 277, 278, 279, 284
COLOR_MAP, TILE_WIDTH, TILE_HEIGHT, TILE_OFFSETS, TILE_BYTES = 320, 322, 323, 324, 325
SUB_DIRECTORIES, SAMPLE_FORMAT, JPEG_TABLES, DNG_VERSION = 330, 339, 347, 50706
PARTS = {STRIP_OFFSETS, STRIP_BYTES, TILE_OFFSETS, TILE_BYTES}
KEPT = {
    *PARTS,
    *(WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, SAMPLES, ROWS_PER_STRIP, PLANES, COLOR_MAP),
    *(TILE_WIDTH, TILE_HEIGHT, SAMPLE_FORMAT, JPEG_TABLES),
    *(266, 292, 293, 317, 332, 333, 334, 338),  # fill order, fax options, predictor, inks, extra samples
    *(512, 513, 514, 515, 517, 518, 519, 520, 521),  # JPEG of the old kind
    *(529, 530, 531, 532, 50674),  # YCbCr, black and white, LERC
}
"""Tags that make pixels. Pillow gets no other."""
LIMITS = dict.fromkeys(PARTS, MAX_PARTS) | {COLOR_MAP: 3 * 65536, JPEG_TABLES: 64 * 1024}
VALUE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4}
VALUE_BYTES |= {16: 8, 17: 8, 18: 8}
NUMBERS = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 13: "I", 16: "Q", 17: "q"}
REDUCED, MASK = 1, 4


@dataclass(frozen=True, slots=True)
class _Layout:
    """How this kind of TIFF writes its numbers."""

    order: str
    is_big: bool

    @property
    def word(self) -> str:
        return "Q" if self.is_big else "I"

    @property
    def count(self) -> str:
        return "Q" if self.is_big else "H"

    @property
    def entry_bytes(self) -> int:
        return 20 if self.is_big else 12

    def unpack(self, form: str, data: Data, at: int) -> int:
        size = struct.calcsize(f"={form}")
        piece = data[at : at + size]
        if len(piece) < size:
            raise damaged("TIFF")
        return int(struct.unpack(self.order + form, piece)[0])


@dataclass(frozen=True, slots=True)
class _Entry:
    kind: int
    count: int
    at: int
    """Where the values are."""
    raw: bytes


def read(data: Data, max_pixels: int) -> ImageHeader:
    """Reads the first directory.

    Raises:
        MediaError: as all readers.
    """
    order = "<" if data[:2] == b"II" else ">"
    layout = _Layout(order, is_big=data[2:4] in (b"+\0", b"\0+"))
    if layout.is_big and order == ">":
        raise refused("This is a BigTIFF image in big-endian order, which cannot be decoded. Save it anew.")
    first = layout.unpack(layout.word, data, 8 if layout.is_big else 4)
    entries = _directory(data, layout, first)
    subfile = _number(data, layout, entries, SUBFILE, 0)
    if DNG_VERSION in entries or (subfile & REDUCED and SUB_DIRECTORIES in entries):
        # The first directory of a camera's file is a small preview.
        raise refused("This is a RAW photo of a camera: develop it to JPEG or PNG.")
    for tag, entry in entries.items():
        limit = LIMITS.get(tag, MAX_VALUES)
        if tag in KEPT and entry.count > limit:
            what = {STRIP_OFFSETS: "strips", TILE_OFFSETS: "tiles"}.get(tag, f"values of tag {tag}")
            raise too_large(f"The TIFF image has {entry.count} {what}; at most {limit} are accepted.")
    width = _number(data, layout, entries, WIDTH, 0)
    height = _number(data, layout, entries, HEIGHT, 0)
    if not {STRIP_OFFSETS, TILE_OFFSETS, 513} & entries.keys():
        raise damaged("TIFF")
    _check_parts(data, layout, entries, width, height, max_pixels)
    return ImageHeader(
        width,
        height,
        pixels_only=lambda: _first_page(data, layout, entries),
        frames=lambda: _pages(data, layout, first),
        orientation=_number(data, layout, entries, ORIENTATION, 1),
        samples=_samples(data, layout, entries),
    )


def _directory(data: Data, layout: _Layout, at: int) -> dict[int, _Entry]:
    count = layout.unpack(layout.count, data, at)
    if count > MAX_TAGS:
        raise too_many("TIFF", "tags", MAX_TAGS)
    at += struct.calcsize(f"={layout.count}")
    entries: dict[int, _Entry] = {}
    for place in range(at, at + count * layout.entry_bytes, layout.entry_bytes):
        raw = data[place : place + layout.entry_bytes]
        if len(raw) < layout.entry_bytes:
            raise damaged("TIFF")
        tag, kind, values = struct.unpack_from(f"{layout.order}HH{layout.word}", raw)
        word_at = place + struct.calcsize(f"=HH{layout.word}")
        fits = VALUE_BYTES.get(kind, 1) * values <= struct.calcsize(f"={layout.word}")
        where = word_at if fits else layout.unpack(layout.word, data, word_at)
        entries[tag] = _Entry(kind, values, where, raw)
    return entries


def _number(data: Data, layout: _Layout, entries: dict[int, _Entry], tag: int, default: int) -> int:
    """The first value of a tag."""
    entry = entries.get(tag)
    if entry is None or entry.kind not in NUMBERS or not entry.count:
        return default
    return layout.unpack(NUMBERS[entry.kind], data, entry.at)


def _check_parts(
    data: Data, layout: _Layout, entries: dict[int, _Entry], width: int, height: int, max_pixels: int
) -> None:
    """Refuses an image that needs too many strips or tiles, or tiles that are too large."""
    if TILE_OFFSETS in entries:
        tile_width = _number(data, layout, entries, TILE_WIDTH, 0)
        tile_height = _number(data, layout, entries, TILE_HEIGHT, 0)
        if tile_width <= 0 or tile_height <= 0:
            raise damaged("TIFF")
        # A small image may lie in one tile of the usual size.
        if tile_width * tile_height > max(max_pixels, 1024 * 1024):
            raise too_large(f"The TIFF image has tiles of {tile_width} × {tile_height} pixels.")
        if -(-width // tile_width) * -(-height // tile_height) > MAX_PARTS:
            raise too_many("TIFF", "tiles")
    else:
        rows = _number(data, layout, entries, ROWS_PER_STRIP, 0) or height or 1
        if -(-height // rows) > MAX_PARTS:
            raise too_many("TIFF", "strips")


def _samples(data: Data, layout: _Layout, entries: dict[int, _Entry]) -> Samples:
    bits = _number(data, layout, entries, BITS, 1)
    is_signed = _number(data, layout, entries, SAMPLE_FORMAT, 1) == 2
    # Pillow turns pictures whose zero is white up to eight bits only.
    is_inverted = bits > 8 and _number(data, layout, entries, PHOTOMETRIC, 1) == 0
    return Samples(bits, is_signed, is_inverted)


def _first_page(data: Data, layout: _Layout, entries: dict[int, _Entry]) -> bytes:
    """The file with one new directory at its end: the first page, with the tags that make pixels."""
    kept = [entry.raw for tag, entry in sorted(entries.items()) if tag in KEPT]
    padding = bytes(len(data) % 2)
    place = struct.pack(layout.order + layout.word, len(data) + len(padding))
    head = data[:8] + place if layout.is_big else data[:4] + place
    count = struct.pack(layout.order + layout.count, len(kept))
    end = struct.pack(layout.order + layout.word, 0)
    return b"".join((head, data[len(head) :], padding, count, *kept, end))


def _pages(data: Data, layout: _Layout, at: int) -> Frames:
    """Counts the directories that are pages: not those of smaller copies and masks."""
    pages, seen = 0, set[int]()
    try:
        while at and at not in seen:
            if len(seen) >= MAX_PAGES:
                return Frames(max(pages, 1), more=True)
            seen.add(at)
            count = layout.unpack(layout.count, data, at)
            entry = at + struct.calcsize(f"={layout.count}")
            # Tags are sorted, and this is the lowest.
            has_kind = count > 0 and layout.unpack("H", data, entry) == SUBFILE
            value_at = entry + struct.calcsize(f"=HH{layout.word}")
            kind = layout.unpack("I", data, value_at) if has_kind else 0
            pages += not kind & (REDUCED | MASK)
            at = layout.unpack(layout.word, data, entry + count * layout.entry_bytes)
    except MediaError:
        pass  # The first page is sound, whatever follows.
    return Frames(max(pages, 1))
