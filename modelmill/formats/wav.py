"""WAV files (RIFF, RIFX, RF64): where the sound lies and how long it is, by the bytes and not by the header.

A program that writes to a stream cannot know the size of the sound when it writes the header. It writes a
placeholder instead: 0, the largest number, or a round one. So a stated size that the file does not have means
one of two things:

- A placeholder: all that follows is sound.
- A size that a recording can have: the file was cut.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, Literal

from modelmill.formats.window import Window

TAGS = {b"RIFF": 4, b"RF64": 4, b"BW64": 4, b"RIFX": 4}
MAX_CHUNKS = 1000
LARGEST = 0x7F00_0000
"""Sizes from here on are placeholders: recorders write the largest number, less the bytes before it."""
NEAR = 4096
"""A placeholder may differ so much from a round number: some programs subtract the header."""
ROUND = (10**8, 2**28)
"""Multiples of these are round numbers."""
IMPLAUSIBLE_S = 6 * 3600
"""A size that stands for a longer recording is rather a placeholder, even if it is not round."""
SLACK = 64
"""So few missing bytes are an error of the program that wrote the header, as one that counts the header."""
FIXED = {1: "PCM", 3: "float", 6: "A-law", 7: "mu-law"}
"""Format tags of encodings with the same number of bytes for each frame."""
EXTENSIBLE = 0xFFFE


@dataclass(frozen=True, slots=True)
class Wav:
    """The layout of a WAV file."""

    form: Literal["WAV", "RF64"]
    big_endian: bool
    fmt: bytes
    """The content of the chunk ``fmt``."""
    rate: int
    channels: int
    frame_bytes: int | None
    """Bytes of one frame; None if the encoding has no fixed number."""
    data_at: int
    data_bytes: int
    """Bytes of sound that are there."""
    stated: int
    """Bytes of sound that the header states."""
    cut: bool
    """The header states more bytes than there are, and is to be believed."""
    doubtful: bool
    """The header states far more than there is, in a way that is no usual placeholder."""
    several: bool
    """Another WAV file follows in the same file."""

    @property
    def frames(self) -> int | None:
        """Samples of one channel; None if the encoding does not tell."""
        return self.data_bytes // self.frame_bytes if self.frame_bytes else None

    @property
    def as_stated(self) -> bool:
        """Whether a reader that believes the header finds the right sound."""
        return self.form == "WAV" and self.stated == self.data_bytes

    def repaired(self, data: bytes) -> bytes:
        """The file with sizes that are true, and without the chunks that hold no sound."""
        order: Literal["big", "little"] = "big" if self.big_endian else "little"
        sound = memoryview(data)[self.data_at : self.data_at + self.data_bytes]
        size = (4 + 8 + len(self.fmt) + 8 + len(sound)).to_bytes(4, order)
        head = (b"RIFX" if self.big_endian else b"RIFF") + size + b"WAVE"
        fmt = b"fmt " + len(self.fmt).to_bytes(4, order) + self.fmt
        return b"".join((head, fmt, b"data", len(sound).to_bytes(4, order), sound))


@dataclass(frozen=True, slots=True)
class _Chunk:
    name: bytes
    at: int
    """Of its content."""
    size: int


def read_wav(file: BinaryIO) -> Wav | None:
    """The layout; None if the header is damaged."""
    window = Window(file)
    tag = window.at(0, 4)
    order: Literal["big", "little"] = "big" if tag == b"RIFX" else "little"
    fmt, large = b"", 0
    for chunk in _chunks(window, 12, order):
        if chunk.name == b"ds64":
            large = int.from_bytes(window.at(chunk.at + 8, 8), order)
        elif chunk.name == b"fmt ":
            fmt = window.at(chunk.at, min(chunk.size, 256))
        elif chunk.name == b"data":
            if len(fmt) < 16:
                return None
            stated = large if tag in (b"RF64", b"BW64") and chunk.size == 0xFFFF_FFFF else chunk.size
            return _layout(window, tag, order, fmt, chunk.at, stated)
    return None


def _layout(
    window: Window, tag: bytes, order: Literal["big", "little"], fmt: bytes, at: int, stated: int
) -> Wav:
    encoding, channels, rate, per_second, _, bits = (
        int.from_bytes(fmt[first:last], order)
        for first, last in ((0, 2), (2, 4), (4, 8), (8, 12), (12, 14), (14, 16))
    )
    if encoding == EXTENSIBLE and len(fmt) >= 26:
        encoding = int.from_bytes(fmt[24:26], order)
    frame = channels * ((bits + 7) // 8) if encoding in FIXED else 0
    there = window.size - at
    cut = doubtful = several = False
    size = stated
    if stated > there:
        size = there
        if stated - there > SLACK and not is_placeholder(stated):
            doubtful = stated > IMPLAUSIBLE_S * max(1, frame * rate or per_second)
            cut = not doubtful
    elif stated < there and (stated == 0 or not _is_chunk_end(window, at + stated, order)):
        several = stated > 0 and window.at(at + stated, 4) in TAGS
        size = stated if several else there
        if stated == 0 and _is_chunk_end(window, at, order):
            size = 0
    return Wav(
        form="WAV" if tag in (b"RIFF", b"RIFX") else "RF64",
        big_endian=order == "big",
        fmt=fmt,
        rate=rate,
        channels=channels,
        frame_bytes=frame or None,
        data_at=at,
        data_bytes=size,
        stated=stated,
        cut=cut,
        doubtful=doubtful,
        several=several,
    )


def is_placeholder(stated: int) -> bool:
    """Whether a program writes this size when it does not know the size of the sound yet."""
    round_number = any(
        (stated + NEAR) // each and min(stated % each, -stated % each) <= NEAR for each in ROUND
    )
    return stated == 0 or stated >= LARGEST or round_number


def _chunks(window: Window, at: int, order: Literal["big", "little"]) -> Iterator[_Chunk]:
    for _ in range(MAX_CHUNKS):
        head = window.at(at, 8)
        if len(head) < 8:
            return
        chunk = _Chunk(head[:4], at + 8, int.from_bytes(head[4:], order))
        yield chunk
        # The chunk of an odd size has one more byte. Some programs leave it out.
        at = chunk.at + chunk.size
        if chunk.size % 2 and _is_name(window.at(at + 1, 4)) | (not _is_name(window.at(at, 4))):
            at += 1


def _is_chunk_end(window: Window, at: int, order: Literal["big", "little"]) -> bool:
    """Whether sound may end here: more chunks, tags of an MP3, or zeros follow up to the file's end."""
    if window.at(at, 1) == b"\0" and _is_name(window.at(at + 1, 4)):
        at += 1
    if window.size - at < 8 or window.at(at, 3) in (b"TAG", b"ID3") or window.at(at, 8) == b"APETAGEX":
        return True
    if _only_zeros(window, at):
        return True
    if window.at(at, 4) in TAGS:
        return False
    end = at
    for chunk in _chunks(window, at, order):
        if not _is_name(chunk.name):
            return False
        end = chunk.at + chunk.size
    # The last chunk may be cut, as no sound is lost by that. A single chunk that is far too long is none.
    return end <= window.size + 8 or end - window.size < SLACK


def _is_name(name: bytes) -> bool:
    return len(name) == 4 and all(0x20 <= each < 0x7F for each in name)


def _only_zeros(window: Window, at: int) -> bool:
    while part := window.at(at, 65_536):
        if part.strip(b"\0"):
            return False
        at += len(part)
    return True
