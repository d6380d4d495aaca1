"""Headers of WebM and Matroska files (EBML). Source: RFC 8794 and RFC 9559."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from modelmill.formats.window import Window

EBML, DOC_TYPE, SEGMENT, INFO, TRACKS, CLUSTER = (
    *(0x1A45_DFA3, 0x4282, 0x1853_8067),
    *(0x1549_A966, 0x1654_AE6B, 0x1F43_B675),
)
SCALE, DURATION, TRACK, TRACK_TYPE = 0x2A_D7B1, 0x4489, 0xAE, 0x83
AUDIO, VIDEO = 2, 1
MAX_ELEMENTS = 1000
MAX_BLOCKS = 500_000
MAX_SIZE = 1 << 40
"""A segment that states more is one that was streamed."""


@dataclass(frozen=True, slots=True)
class Matroska:
    """What the headers say."""

    webm: bool
    seconds: float | None
    """None if it was streamed."""
    tracks: tuple[int, ...] | None
    """The types of the tracks (``AUDIO``, ``VIDEO``, …); None if they do not stand before the sound."""
    cut: bool
    """The file is shorter than it states."""


@dataclass(frozen=True, slots=True)
class _Element:
    id: int
    at: int
    size: int | None
    """None if unknown."""


def read_matroska(file: BinaryIO) -> Matroska | None:
    """What the headers say; None if they are damaged."""
    window = Window(file)
    top = list(_elements(window, 0, window.size, most=2))
    if not top or top[0].id != EBML or top[0].size is None:
        return None
    webm = any(
        each.id == DOC_TYPE and window.at(each.at, min(each.size or 0, 16)).rstrip(b"\0") == b"webm"
        for each in _elements(window, top[0].at, top[0].at + top[0].size)
    )
    if len(top) < 2 or top[1].id != SEGMENT:
        return None
    segment = top[1]
    end = window.size if segment.size is None else segment.at + segment.size
    scale, length = 1_000_000, None
    tracks: tuple[int, ...] | None = None
    for each in _elements(window, segment.at, min(end, window.size)):
        if each.id == INFO and each.size is not None:
            for part in _elements(window, each.at, each.at + each.size):
                if part.id == SCALE:
                    scale = window.number(part.at, min(part.size or 0, 8))
                elif part.id == DURATION:
                    length = _float(window.at(part.at, min(part.size or 0, 8)))
        elif each.id == TRACKS and each.size is not None:
            tracks = tuple(_track_types(window, each))
        elif each.id == CLUSTER:
            break
    seconds = None if length is None else length * scale / 1e9
    cut = segment.size is not None and end > window.size and segment.size < MAX_SIZE
    return Matroska(webm, seconds if seconds and 0 < seconds < float("inf") else None, tracks, cut)


def ends_inside(file: BinaryIO) -> bool:
    """Whether a streamed file, which states no length, ends in the middle of an element."""
    window = Window(file)
    at = 0
    for _ in range(MAX_BLOCKS):
        element = next(_elements(window, at, window.size, most=1), None)
        if element is None:
            return at < window.size
        if element.id in (SEGMENT, CLUSTER):
            at = element.at
        elif element.size is None:
            return False
        else:
            at = element.at + element.size
        if at >= window.size:
            return at > window.size
    return False


def _track_types(window: Window, tracks: _Element) -> Iterator[int]:
    for track in _elements(window, tracks.at, tracks.at + (tracks.size or 0)):
        if track.id == TRACK and track.size is not None:
            for part in _elements(window, track.at, track.at + track.size):
                if part.id == TRACK_TYPE:
                    yield window.number(part.at, min(part.size or 0, 8))


def _elements(window: Window, at: int, end: int, most: int = MAX_ELEMENTS) -> Iterator[_Element]:
    end = min(end, window.size)
    for _ in range(most):
        if at >= end:
            return
        head = window.at(at, 12)
        id_bytes = _length(head[:1])
        size_bytes = _length(head[id_bytes : id_bytes + 1]) if 0 < id_bytes <= 4 else 0
        if not size_bytes or len(head) < id_bytes + size_bytes:
            return
        mask = (1 << 7 * size_bytes) - 1
        size = int.from_bytes(head[id_bytes : id_bytes + size_bytes], "big") & mask
        start = at + id_bytes + size_bytes
        known = None if size == mask else size
        yield _Element(int.from_bytes(head[:id_bytes], "big"), start, known)
        if known is None:
            return
        at = start + known


def _length(first: bytes) -> int:
    """Bytes of a number of variable length: one more than the zero bits that its first byte begins with."""
    return 9 - first[0].bit_length() if first and first[0] else 0


def _float(data: bytes) -> float | None:
    kinds = {4: ">f", 8: ">d"}
    return float(struct.unpack(kinds[len(data)], data)[0]) if len(data) in kinds else None
