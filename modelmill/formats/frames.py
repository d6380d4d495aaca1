"""MP3 and AAC files that are a row of frames: where the first frame is, behind tags, zeros and garbage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from modelmill.formats.window import Window

MP3_RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}
"""Samples per second, by the header's version (3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5) and index."""
MP3_KBITS: dict[tuple[bool, int], tuple[int, ...]] = {
    (True, 1): (0, 32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (0, 32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (0, 32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates in kbit/s, by whether the version is MPEG-1, and the layer."""
AAC_RATES = (
    *(96_000, 88_200, 64_000, 48_000, 44_100, 32_000, 24_000),
    *(22_050, 16_000, 12_000, 11_025, 8000, 7350),
)
AAC_SAMPLES = 1024
LONGEST_FRAME = 8192
"""No frame has more bytes."""
SEARCHED = 65_536
"""The first frame is searched in so many bytes behind tags and zeros."""
MAX_TAGS = 100
HAS_FRAMES = 1
"""Flag of "Xing" data: the number of frames follows."""
CHAIN = 3
"""So many frames in a row are no accident."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header."""

    kind: Literal["MP3", "AAC"]
    rate: int
    """Samples per second."""
    channels: int
    """0 if the frame's content decides, as in some AAC files."""
    samples: int
    """Samples of one channel in a frame."""
    length: int
    """Bytes, header included."""
    version: int = 0
    """Of MP3: 3 for MPEG-1, 2 for MPEG-2, 0 for MPEG-2.5."""
    layer: int = 0
    """Of MP3: 1, 2 or 3."""

    @property
    def side(self) -> int:
        """Bytes between the header and the "Xing" data, which replaces the sound of an MP3's first frame."""
        if self.version == 3:
            return 17 if self.channels == 1 else 32
        return 9 if self.channels == 1 else 17

    def goes_on_as(self, other: Frame) -> bool:
        """Whether both can belong to one recording."""
        return (self.kind, self.rate, self.version, self.layer) == (
            (other.kind, other.rate, other.version, other.layer)
        )


def first_frame(window: Window) -> tuple[int, Frame] | None:
    """The place and the header of the first frame; None if the file does not begin with frames.

    Before it there may be tags, any number of zero bytes, and ``SEARCHED`` bytes of something else.
    """
    start = after_tags(window)
    data = window.at(start, SEARCHED + CHAIN * LONGEST_FRAME)
    whole = start + len(data) == window.size
    at = data.find(b"\xff")
    while 0 <= at < SEARCHED:
        frame = frame_at(data, at)
        # Behind garbage only a row of frames counts, and at the start a file of one frame, too.
        if frame is not None and _chained(data, at, frame, short=whole and at == 0):
            return start + at, frame
        at = data.find(b"\xff", at + 1)
    return None


def stated_frames(data: bytes, frame: Frame) -> int | None:
    """How many frames an MP3 says it has, by the data of its first frame; None if it does not say it."""
    at = 4 + frame.side
    count = 0
    if data[at : at + 4] in (b"Xing", b"Info") and len(data) > at + 7 and data[at + 7] & HAS_FRAMES:
        count = int.from_bytes(data[at + 8 : at + 12], "big")
    elif data[36:40] == b"VBRI":
        count = int.from_bytes(data[50:54], "big")
    # Programs that write to a stream leave a 0.
    return count or None


def after_tags(window: Window) -> int:
    """The place behind the tags (ID3v2, APE) and zero bytes that a file begins with."""
    at = 0
    for _ in range(MAX_TAGS):
        at = _after_zeros(window, at)
        head = window.at(at, 32)
        if head[:3] == b"ID3" and len(head) >= 10:
            # Seven bits per byte, and ten bytes of header; ten more at the end if the flag says so.
            size = sum((byte & 0x7F) << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
            at += 10 + size + (10 if head[5] & 0x10 else 0)
        elif head[:8] == b"APETAGEX":
            at += 32 + int.from_bytes(head[12:16], "little")
        else:
            break
    return at


def frame_at(data: bytes, at: int) -> Frame | None:
    """The header of the frame at this place, if there is one."""
    if at + 7 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE0 != 0xE0:
        return None
    return _aac(data, at) if data[at + 1] & 0xF6 == 0xF0 else _mp3(data, at)


def _mp3(data: bytes, at: int) -> Frame | None:
    """Source: ISO/IEC 11172-3, 2.4.1.3."""
    version, layer = data[at + 1] >> 3 & 3, 4 - (data[at + 1] >> 1 & 3)
    bits, rate, padding = data[at + 2] >> 4, data[at + 2] >> 2 & 3, data[at + 2] >> 1 & 1
    if version == 1 or layer == 4 or bits in (0, 15) or rate == 3:
        return None
    hertz = MP3_RATES[version][rate]
    bit_rate = MP3_KBITS[version == 3, layer][bits] * 1000
    if layer == 1:
        samples, length = 384, (12 * bit_rate // hertz + padding) * 4
    else:
        samples = 576 if layer == 3 and version != 3 else 1152
        length = samples // 8 * bit_rate // hertz + padding
    channels = 1 if data[at + 3] >> 6 == 3 else 2
    return Frame("MP3", hertz, channels, samples, length, version, layer)


def _aac(data: bytes, at: int) -> Frame | None:
    """Source: ISO/IEC 13818-7, 6.2 (ADTS)."""
    rate = data[at + 2] >> 2 & 15
    channels = (data[at + 2] & 1) << 2 | data[at + 3] >> 6
    length = (data[at + 3] & 3) << 11 | data[at + 4] << 3 | data[at + 5] >> 5
    if rate >= len(AAC_RATES) or length < 8:
        return None
    blocks = (data[at + 6] & 3) + 1
    return Frame("AAC", AAC_RATES[rate], 8 if channels == 7 else channels, AAC_SAMPLES * blocks, length)


def _chained(data: bytes, at: int, first: Frame, *, short: bool) -> bool:
    """Whether frames follow each other from here. If ``short``, fewer may reach the file's end."""
    frame = first
    for _ in range(CHAIN - 1):
        at += frame.length
        following = frame_at(data, at)
        if following is None or not following.goes_on_as(first):
            return short and (at >= len(data) or data[at : at + 3] in (b"TAG", b"APE", b"ID3", bytes(3)))
        frame = following
    return True


def _after_zeros(window: Window, at: int) -> int:
    while part := window.at(at, SEARCHED):
        rest = part.lstrip(b"\0")
        at += len(part) - len(rest)
        if rest:
            break
    return at
