"""Headers of MP4, M4A, 3GP and QuickTime files: boxes, and whether their tables are within bounds.

A box of a few bytes can state a table of two billion samples. FFmpeg, which decodes these files, allots
memory for what the box states. So the tables are counted here, before it sees the file.
Source: ISO/IEC 14496-12.
"""

from __future__ import annotations

import sys
from array import array
from dataclasses import dataclass, field
from typing import BinaryIO

from modelmill.formats.window import Window

HOLDERS = frozenset(
    (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts", b"mvex", b"moof", b"traf", b"udta", b"dinf")
)
"""Boxes whose content is boxes."""
COUNTED = (b"stsz", b"stz2", b"stts", b"ctts", b"stsc", b"elst", b"trun", b"cmov")
"""Boxes that decide how much memory a reader needs."""
MAX_BOXES = 100_000
MAX_DEPTH = 10
SOUNDLESS = frozenset((b"mdat", b"free", b"skip", b"wide", b"uuid", b"ftyp", b"styp", b"sidx"))
"""Boxes of the file itself in which no reader looks for tables."""
MAX_HEADER = 16 << 20
"""Bytes of a box that holds tables."""
MAX_SAMPLES = 2_000_000
"""Samples of all tracks: 9 hours of AAC. A reader needs 24 bytes for each."""
MAX_EDITED = 4_000_000
"""Samples times edits: a reader lists the samples of each edit."""
RAW = 160
"""Of uncompressed sound, a reader lists pieces of at least so many samples."""
STREAMED = 1 << 40


@dataclass(slots=True)
class Mp4:
    """What the boxes say."""

    brand: bytes = b""
    seconds: float | None = None
    """None if the file was streamed."""
    tracks: list[bytes] = field(default_factory=list)
    """The handlers of the tracks: ``soun``, ``vide``, …"""
    cut: bool = False
    """The file is shorter than it states."""
    indexed: bool = False
    """There is an index: a box ``moov``."""
    too_large: bool = False
    """The tables are larger than any recording needs."""


@dataclass(slots=True)
class _Track:
    samples: int = 0
    timed: int = 0
    lengths: list[int] = field(default_factory=list)
    """Of ``stts``: the lengths of the first samples."""
    runs: array[int] = field(default_factory=lambda: array("I"))
    """``stsc``: first chunk, samples per chunk, and a third number."""
    chunks: int = 0
    edits: int = 0


@dataclass(slots=True)
class _Reader:
    window: Window
    found: Mp4
    boxes: int = 0
    pieces: int = 0
    """Samples of the pieces of a streamed file."""
    track: _Track = field(default_factory=_Track)
    tracks: list[_Track] = field(default_factory=list)
    counted: int = 0
    """Boxes of ``COUNTED`` that were read."""

    def read(self, at: int, end: int, depth: int) -> None:
        """The boxes between two places."""
        while at + 8 <= end and not self.found.too_large:
            size, name, start = self._head(at, end)
            if size < start - at:
                return
            stop = at + size
            self.boxes += 1
            if self.boxes > MAX_BOXES or depth > MAX_DEPTH:
                self.found.too_large = True
            elif depth == 0 and stop > end:
                # What ends in the middle of a box without sound, as free space, misses nothing.
                self.found.cut |= name in (b"mdat", b"moov", b"moof") and size < STREAMED
            self._box(name, start, min(stop, end), depth)
            at = stop

    def _box(self, name: bytes, start: int, stop: int, depth: int) -> None:
        before = self.counted
        if name == b"trak":
            self.track = _Track()
            self.tracks.append(self.track)
        self.found.indexed |= name == b"moov"
        if name in HOLDERS:
            self.read(start, stop, depth + 1)
        else:
            self._leaf(name, start, stop)
        if depth == 0 and name not in SOUNDLESS:
            # A table at a place where this reader does not look, another one may find.
            data = self.window.at(start, min(stop - start, MAX_HEADER))
            hidden = sum(data.count(each) for each in COUNTED) > self.counted - before
            self.found.too_large |= hidden or stop - start > MAX_HEADER

    def _head(self, at: int, end: int) -> tuple[int, bytes, int]:
        head = self.window.at(at, 16)
        size, name = int.from_bytes(head[:4], "big"), head[4:8]
        if size == 1:
            return int.from_bytes(head[8:16], "big"), name, at + 16
        return size or end - at, name, at + 8

    def _leaf(self, name: bytes, start: int, stop: int) -> None:
        window = self.window
        if name == b"ftyp":
            self.found.brand = window.at(start, 4)
        elif name == b"mvhd":
            wide = window.at(start, 1) == b"\1"
            scale = window.number(start + (20 if wide else 12), 4)
            length = window.number(start + (24 if wide else 16), 8 if wide else 4)
            known = 0 < length < (2**64 - 1 if wide else 2**32 - 1)
            self.found.seconds = length / scale if scale and known else None
        elif name == b"hdlr" and len(self.found.tracks) < len(self.tracks):
            self.found.tracks.append(window.at(start + 8, 4))
        elif name in (b"stco", b"co64"):
            self.track.chunks += min(window.number(start + 4, 4), (stop - start) // 4)
        elif name in COUNTED:
            self.counted += 1
            self._table(name, start, stop)

    def _table(self, name: bytes, start: int, stop: int) -> None:
        window, track = self.window, self.track
        if name == b"cmov":
            self.found.too_large = True
        elif name in (b"stsz", b"stz2"):
            track.samples += window.number(start + 8, 4)
        elif name == b"elst":
            track.edits += window.number(start + 4, 4)
        elif name == b"trun":
            self.pieces += window.number(start + 4, 4)
        else:
            width = 12 if name == b"stsc" else 8
            count = min(window.number(start + 4, 4), max(0, stop - start - 8) // width)
            numbers = array("I", window.at(start + 8, count * width))
            if sys.byteorder == "little":
                numbers.byteswap()
            if name == b"stsc":
                track.runs = numbers
            else:
                track.timed += sum(numbers[::2])
                track.lengths += numbers[1:4:2] if name == b"stts" else []

    def check(self) -> None:
        """Whether the tables are within the bounds, all tracks together."""
        listed = self.pieces
        for track in self.tracks:
            # A length of 1: uncompressed sound. How a reader lists it depends on more than this module reads.
            samples = 0 if track.lengths == [1] else max(track.samples, track.timed)
            samples += _in_chunks(track) // RAW
            listed += samples
            self.found.too_large |= samples * max(1, track.edits) > MAX_EDITED
        self.found.too_large |= listed > MAX_SAMPLES


def read_mp4(file: BinaryIO) -> Mp4:
    """What the boxes say. Reads each table once, and no more than ``MAX_BOXES`` boxes."""
    window = Window(file)
    reader = _Reader(window, Mp4())
    reader.read(0, window.size, 0)
    reader.check()
    return reader.found


def _in_chunks(track: _Track) -> int:
    """Samples by ``stsc``: how many chunks there are, times the samples of each."""
    total, firsts, samples = 0, track.runs[::3], track.runs[1::3]
    for index, (first, each) in enumerate(zip(firsts, samples, strict=True)):
        last = firsts[index + 1] if index + 1 < len(firsts) else track.chunks + 1
        total += max(0, min(last, track.chunks + 1) - first) * each
    return total
