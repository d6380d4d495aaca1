"""MP3s that do not state their length.

Most begin with a frame that holds the number of frames ("Xing" or "Info"). For the others, the decoder
guesses the length from the first frame's bit rate and stops there.
"""

from __future__ import annotations

from dataclasses import dataclass

RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8000)}
"""Samples per second, by the header's version (3: MPEG-1, 2: MPEG-2, 0: MPEG-2.5) and index."""
KBITS = {
    True: (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    False: (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""Bit rates of layer III in kbit/s, for MPEG-1 and the others."""
SEARCHED = 65_536
"""The first frame is searched in so many bytes."""
HAS_FRAMES = 1
"""Xing's flag: the number of frames follows."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame's header."""

    version: int
    mono: bool
    length: int
    """Bytes, header included."""

    @property
    def side(self) -> int:
        """Bytes between the header and the "Xing" data, which replaces the sound."""
        if self.version == 3:
            return 17 if self.mono else 32
        return 9 if self.mono else 17


def with_length(data: bytes) -> bytes:
    """The file, with a first frame that states its length. If it has such a frame, it is unchanged."""
    start = _first_frame(data)
    frame = None if start is None else _frame(data, start)
    if start is None or frame is None:
        return data
    told = data[start + 4 + frame.side : start + 8 + frame.side]
    if told in (b"Xing", b"Info") or data[start + 36 : start + 40] == b"VBRI":
        return data
    count, at = 0, start
    while (each := _frame(data, at)) is not None:
        count, at = count + 1, at + each.length
    # A frame of the first frame's kind, without checksum and padding, at a bit rate that gives enough room.
    header = bytes([0xFF, data[start + 1] | 1, 0x90 | data[start + 2] & 0x0C, data[start + 3]])
    told = b"Xing" + HAS_FRAMES.to_bytes(4, "big") + count.to_bytes(4, "big")
    first = header + bytes(frame.side) + told
    made = _frame(first, 0)
    return first.ljust(made.length, b"\0") + data[start:] if made else data


def _first_frame(data: bytes) -> int | None:
    start = 0
    if data[:3] == b"ID3" and len(data) > 10:
        # ID3v2: seven bits per byte, and ten bytes of header.
        size = sum((byte & 0x7F) << shift for byte, shift in zip(data[6:10], (21, 14, 7, 0), strict=True))
        start = 10 + size + (10 if data[5] & 0x10 else 0)
    for at in range(start, min(len(data), start + SEARCHED)):
        frame = _frame(data, at)
        if frame is not None and _frame(data, at + frame.length) is not None:
            return at
    return None


def _frame(data: bytes, at: int) -> Frame | None:
    """The header of the layer III frame at this place. Source: ISO/IEC 11172-3, 2.4.1.3."""
    if at + 4 > len(data) or data[at] != 0xFF or data[at + 1] & 0xE6 != 0xE2:
        return None
    version, bits, rate = data[at + 1] >> 3 & 3, data[at + 2] >> 4, data[at + 2] >> 2 & 3
    if version == 1 or bits in (0, 15) or rate == 3:
        return None
    slots = 144 if version == 3 else 72
    length = slots * KBITS[version == 3][bits] * 1000 // RATES[version][rate] + (data[at + 2] >> 1 & 1)
    return Frame(version, data[at + 3] >> 6 == 3, length)
