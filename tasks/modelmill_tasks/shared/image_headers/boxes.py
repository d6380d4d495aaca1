"""AVIF and HEIC: the boxes that say how large the image is and what it is made of. No decoder is needed.

A file holds items: coded pictures, grids that are put together from coded pictures, and metadata. Properties,
such as the size, are kept once in a list, and items refer to them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from modelmill_tasks.shared.image_headers.coded import check_av1, check_hevc, check_hevc_settings
from modelmill_tasks.shared.image_headers.common import (
    Data,
    ImageHeader,
    damaged,
    refused,
    too_large,
    too_many,
)

MAX_BOXES = 10_000
MAX_ITEMS = 4096
MAX_TILES = 1024
"""Pictures that one image is put together from. A photo of 48 megapixels has 192."""
MAX_DEPTH = 3
"""An image that is made of images that are made of coded pictures."""
MAX_SAMPLES = 100_000
"""Pictures of a sequence. The decoder lists them all before it decodes the first."""
MAX_TRACKS = 16
TRACK_LEVELS = (b"mdia", b"minf", b"stbl")
"""Boxes within a track, each in the one before it."""
CODED = {b"av01": check_av1, b"hvc1": check_hevc, b"hev1": check_hevc}
DERIVED = {b"grid", b"iovl", b"iden", b"tmap"}
METADATA = {b"Exif", b"mime"}


@dataclass(slots=True)
class _Item:
    kind: bytes = b""
    kind_at: int = 0
    size: tuple[int, int] | None = None
    parts: list[int] = field(default_factory=list)
    """Items that this one is put together from."""
    extents: list[tuple[int, int]] = field(default_factory=list)
    """Where its bytes lie: places in the file."""


class _Boxes:
    """Reads boxes of one file, a bounded number of them."""

    def __init__(self, data: Data, form: str) -> None:
        self.data = data
        self.form = form
        self._left = MAX_BOXES

    def within(self, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """Kind, start and end of the body of each box. The last one may be cut where the file is cut."""
        while start + 8 <= end:
            self._left -= 1
            if self._left < 0:
                raise too_many(self.form, "boxes", MAX_BOXES)
            size, kind, body = self.number(start, 4), self.data[start + 4 : start + 8], start + 8
            if size == 1:
                size, body = self.number(body, 8), start + 16
            box_end = end if size == 0 else start + size
            if box_end < body or (box_end > end and end != len(self.data)):
                raise damaged(self.form)
            yield kind, body, min(box_end, end)
            start = box_end

    def number(self, at: int, count: int) -> int:
        piece = self.data[at : at + count]
        if len(piece) < count:
            raise damaged(self.form)
        return int.from_bytes(piece, "big")


@dataclass(slots=True)
class _Meta:
    """The ``meta`` box: the items and their properties."""

    boxes: _Boxes
    primary: int | None = None
    items: dict[int, _Item] = field(default_factory=dict)
    properties: list[tuple[bytes, int, int]] = field(default_factory=list)
    data_at: int = 0

    def item(self, number: int) -> _Item:
        if number not in self.items and len(self.items) >= MAX_ITEMS:
            raise too_many(self.boxes.form, "items", MAX_ITEMS)
        return self.items.setdefault(number, _Item())

    def read(self, start: int, end: int) -> None:
        found = {kind: (body, stop) for kind, body, stop in self.boxes.within(start + 4, end)}
        if b"pitm" in found:
            at, _ = found[b"pitm"]
            self.primary = self.boxes.number(at + 4, 4 if self.boxes.number(at, 1) else 2)
        if b"idat" in found:
            self.data_at = found[b"idat"][0]
        for kind, reader in {
            b"iinf": self._read_infos,
            b"iref": self._read_references,
            b"iprp": self._read_properties,
            b"iloc": self._read_places,
        }.items():
            if kind in found:
                reader(*found[kind])

    def _read_infos(self, start: int, end: int) -> None:
        skipped = 4 + (4 if self.boxes.number(start, 1) else 2)
        for kind, body, _ in self.boxes.within(start + skipped, end):
            version = self.boxes.number(body, 1)
            if kind == b"infe" and version in (2, 3):
                id_bytes = 2 if version == 2 else 4
                item = self.item(self.boxes.number(body + 4, id_bytes))
                item.kind_at = body + 6 + id_bytes
                item.kind = self.boxes.data[item.kind_at : item.kind_at + 4]

    def _read_references(self, start: int, end: int) -> None:
        id_bytes = 4 if self.boxes.number(start, 1) else 2
        for kind, body, stop in self.boxes.within(start + 4, end):
            if kind != b"dimg":
                continue
            count = self.boxes.number(body + id_bytes, 2)
            if count > MAX_TILES:
                raise too_many(self.boxes.form, "tiles", MAX_TILES)
            first = body + id_bytes + 2
            if first + count * id_bytes > stop:
                raise damaged(self.boxes.form)
            item = self.item(self.boxes.number(body, id_bytes))
            item.parts = [self.boxes.number(first + n * id_bytes, id_bytes) for n in range(count)]

    def _read_properties(self, start: int, end: int) -> None:
        for kind, body, stop in self.boxes.within(start, end):
            if kind == b"ipco":
                self.properties = list(self.boxes.within(body, stop))
        for kind, body, stop in self.boxes.within(start, end):
            if kind == b"ipma":
                self._associate(body, stop)

    def _associate(self, at: int, end: int) -> None:
        head = self.boxes.number(at, 4)
        id_bytes, index_bytes = 4 if head >> 24 else 2, 2 if head & 1 else 1
        count, at = self.boxes.number(at + 4, 4), at + 8
        if count > MAX_ITEMS:
            raise too_many(self.boxes.form, "items", MAX_ITEMS)
        for _ in range(count):
            item = self.item(self.boxes.number(at, id_bytes))
            indexes = self.boxes.number(at + id_bytes, 1)
            at += id_bytes + 1
            for _ in range(indexes):
                # The upper bit says that a reader must know the property.
                index = self.boxes.number(at, index_bytes) & (0x7FFF if index_bytes == 2 else 0x7F)
                at += index_bytes
                if 0 < index <= len(self.properties):
                    kind, body, _ = self.properties[index - 1]
                    if kind == b"ispe":
                        item.size = self.boxes.number(body + 4, 4), self.boxes.number(body + 8, 4)
            if at > end:
                raise damaged(self.boxes.form)

    def _read_places(self, at: int, end: int) -> None:
        version, sizes = self.boxes.number(at, 1), self.boxes.number(at + 4, 2)
        offset_bytes, length_bytes, base_bytes = sizes >> 12, sizes >> 8 & 15, sizes >> 4 & 15
        index_bytes = sizes & 15 if version else 0
        id_bytes = 4 if version == 2 else 2
        count, at = self.boxes.number(at + 6, id_bytes), at + 6 + id_bytes
        extents_left = MAX_BOXES
        if count > MAX_ITEMS:
            raise too_many(self.boxes.form, "items", MAX_ITEMS)
        for _ in range(count):
            item = self.item(self.boxes.number(at, id_bytes))
            at += id_bytes
            method = self.boxes.number(at, 2) & 15 if version else 0
            at += 4 if version else 2
            base = self.boxes.number(at, base_bytes) + (self.data_at if method == 1 else 0)
            extents, at = self.boxes.number(at + base_bytes, 2), at + base_bytes + 2
            extents_left -= extents
            if extents_left < 0:
                raise too_many(self.boxes.form, "extents", MAX_BOXES)
            for _ in range(extents):
                at += index_bytes
                place = base + self.boxes.number(at, offset_bytes)
                length = self.boxes.number(at + offset_bytes, length_bytes)
                at += offset_bytes + length_bytes
                if method < 2:
                    item.extents.append((place, length or len(self.boxes.data)))
            if at > end:
                raise damaged(self.boxes.form)


def read(data: Data, max_pixels: int, form: str) -> ImageHeader:
    """Reads the boxes.

    Args:
        data: The file.
        max_pixels: Pixels that may be decoded.
        form: ``AVIF`` or ``HEIC``, for messages.

    Raises:
        MediaError: as all readers.
    """
    boxes = _Boxes(data, form)
    meta = _Meta(boxes)
    sizes: list[tuple[int, int]] = []
    for kind, body, end in boxes.within(0, len(data)):
        if kind == b"meta" and not meta.items:
            meta.read(body, end)
        elif kind == b"moov":
            sizes += _track_sizes(boxes, body, end)
    primary = meta.items.get(meta.primary) if meta.primary is not None else None
    if primary is not None and primary.size is not None:
        sizes.insert(0, primary.size)
    if not sizes:
        raise damaged(form)
    width, height = sizes[0]
    largest = max([*sizes, *(item.size for item in meta.items.values() if item.size)], key=_area)
    if _area(largest) > max_pixels:
        # Also a part, a preview or a depth map may be as large as that at most.
        width, height = largest
    elif meta.primary is not None and primary is not None:
        _check_work(meta, meta.primary, max_pixels)
        _check_coded(meta, max_pixels)
    return ImageHeader(width, height, pixels_only=lambda: _without_metadata(data, meta))


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]


def _check_work(meta: _Meta, number: int, max_pixels: int) -> None:
    """Refuses an image that is put together from far more pixels than it has."""
    form = meta.boxes.form
    parts = 0

    def pixels(number: int, depth: int) -> int:
        nonlocal parts
        parts += 1
        item = meta.items.get(number)
        if depth > MAX_DEPTH or parts > 2 * MAX_TILES:
            raise too_many(form, "tiles", MAX_TILES)
        if item is None:
            raise damaged(form)
        if item.kind not in DERIVED:
            return _area(item.size or (0, 0))
        return sum(pixels(part, depth + 1) for part in item.parts)

    # The tiles at the right and at the bottom may stand out.
    if pixels(number, 0) > 2 * max_pixels:
        raise too_large(
            f"The {form} image is put together from parts with more than {2 * max_pixels} pixels in all."
        )


def _check_coded(meta: _Meta, max_pixels: int) -> None:
    """Looks into each coded picture: a decoder goes by what it says, and by what the boxes say only later."""
    form, data = meta.boxes.form, meta.boxes.data
    for kind, body, end in meta.properties:
        if kind == b"hvcC":
            check_hevc_settings(data[body:end], max_pixels)
    for item in meta.items.values():
        check = CODED.get(item.kind)
        if check is None:
            continue
        if len(item.extents) == 1:
            start, length = item.extents[0]
            check(data, start, min(start + length, len(data)), max_pixels)
        elif sum(length for _, length in item.extents) > len(data):
            raise refused(f"The {form} image has a picture in several pieces that lie upon each other.")
        else:
            piece = b"".join(data[start : start + length] for start, length in item.extents)
            check(piece, 0, len(piece), max_pixels)


def _track_sizes(boxes: _Boxes, start: int, end: int) -> list[tuple[int, int]]:
    """The sizes that the tracks of a sequence give."""
    sizes: list[tuple[int, int]] = []
    tracks = [(body, stop) for kind, body, stop in boxes.within(start, end) if kind == b"trak"]
    if len(tracks) > MAX_TRACKS:
        raise too_many(boxes.form, "tracks", MAX_TRACKS)
    for body, stop in tracks:
        for kind, at, box_end in _tree(boxes, body, stop):
            if kind == b"tkhd":
                place = at + (88 if boxes.number(at, 1) else 76)
                sizes.append((boxes.number(place, 4) >> 16, boxes.number(place + 4, 4) >> 16))
            elif kind == b"stsd":
                for _, entry, entry_end in boxes.within(at + 8, box_end):
                    if entry_end - entry >= 28:
                        sizes.append((boxes.number(entry + 24, 2), boxes.number(entry + 26, 2)))
            elif kind == b"stsz" and boxes.number(at + 8, 4) > MAX_SAMPLES:
                raise too_many(boxes.form, "frames", MAX_SAMPLES)
    # Tracks of sound or text have no size.
    return [size for size in sizes if all(size)]


def _tree(boxes: _Boxes, start: int, end: int, level: int = 0) -> Iterator[tuple[bytes, int, int]]:
    """The boxes of a track that describe its pictures."""
    for kind, body, stop in boxes.within(start, end):
        if level < len(TRACK_LEVELS) and kind == TRACK_LEVELS[level]:
            yield from _tree(boxes, body, stop, level + 1)
        else:
            yield kind, body, stop


def _without_metadata(data: Data, meta: _Meta) -> bytes:
    """The file with EXIF and XMP renamed, so that no decoder reads them. The boxes tell how to turn it."""
    places = [item.kind_at for item in meta.items.values() if item.kind in METADATA]
    if not places:
        return data[:]
    copy = bytearray(data)
    for at in places:
        copy[at : at + 4] = b"none"
    return bytes(copy)
