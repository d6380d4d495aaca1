"""Pictures that are coded as AV1 or HEVC: how many there are in one piece, and how large they say they are.

One piece of an image file holds one picture. A decoder works through all that it holds, so a small piece with
thousands of pictures, or one with a size of its own, costs as much as a film.
"""

from __future__ import annotations

from modelmill_tasks.shared.image_headers.common import Data, too_large

MAX_UNITS = 10_000
"""Units of one piece that are looked at: headers, tiles, slices."""
MAX_PICTURES = 8
"""A picture may come in layers."""

MAX_SETTINGS_BYTES = 256
"""Width and height stand at the beginning."""
BLOCK = 128

OBU_SEQUENCE_HEADER, OBU_FRAME_HEADER, OBU_FRAME = 1, 3, 6
NAL_SPS, NAL_SLICES = 33, range(32)


def check_av1(data: Data, start: int, end: int, max_pixels: int) -> None:
    """Refuses a piece of AV1 that holds many frames, or frames that are too large.

    Raises:
        MediaError: it does.
    """
    pictures = 0
    for _ in range(MAX_UNITS):
        if start >= end:
            return
        head = data[start]
        kind = head >> 3 & 15
        start += 2 if head & 4 else 1
        size = end - start
        if head & 2:
            size, start = _leb128(data, start)
        if kind == OBU_SEQUENCE_HEADER:
            _check_size(
                "AVIF",
                _av1_size(data[start : min(start + size, end, start + MAX_SETTINGS_BYTES)]),
                max_pixels,
            )
        pictures += kind in (OBU_FRAME_HEADER, OBU_FRAME)
        _check_pictures("AVIF", pictures)
        start += size
    raise too_large(f"A picture of the AVIF image has more than {MAX_UNITS} units.")


def _leb128(data: Data, at: int) -> tuple[int, int]:
    value = 0
    for index, byte in enumerate(data[at : at + 8]):
        value |= (byte & 0x7F) << 7 * index
        if not byte & 0x80:
            return value, at + index + 1
    return value, at + 8


def check_hevc(data: Data, start: int, end: int, max_pixels: int) -> None:
    """Refuses a piece of HEVC that holds many pictures, or settings of a picture that is too large.

    The length of each unit is taken to have four bytes, as encoders write it.

    Raises:
        MediaError: it does.
    """
    pictures = 0
    for _ in range(MAX_UNITS):
        if start + 6 > end:
            return
        size, start = int.from_bytes(data[start : start + 4], "big"), start + 4
        kind = data[start] >> 1 & 63
        if kind == NAL_SPS:
            _check_size("HEIC", _hevc_size(data[start : start + min(size, MAX_SETTINGS_BYTES)]), max_pixels)
        # The first bit of a slice says that a picture begins.
        pictures += kind in NAL_SLICES and data[start + 2] >> 7
        _check_pictures("HEIC", pictures)
        start += size
    raise too_large(f"A picture of the HEIC image has more than {MAX_UNITS} units.")


def check_hevc_settings(record: bytes, max_pixels: int) -> None:
    """Refuses settings (an ``hvcC`` box) of a picture that is too large.

    Raises:
        MediaError: it is.
    """
    arrays, at = record[22:23], 23
    for _ in range(arrays[0] if arrays else 0):
        count, at = int.from_bytes(record[at + 1 : at + 3], "big"), at + 3
        for _ in range(min(count, 64)):
            size, at = int.from_bytes(record[at : at + 2], "big"), at + 2
            unit = record[at : at + size]
            if unit and unit[0] >> 1 & 63 == NAL_SPS:
                _check_size("HEIC", _hevc_size(unit[:MAX_SETTINGS_BYTES]), max_pixels)
            at += size


def _check_pictures(form: str, pictures: int) -> None:
    if pictures > MAX_PICTURES:
        raise too_large(f"A piece of the {form} image holds more than {MAX_PICTURES} pictures.")


def _check_size(form: str, size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    # Coded pictures are filled up to whole blocks.
    if width * height > max_pixels + BLOCK * (width + height):
        raise too_large(
            f"The {form} image is coded with {width} × {height} pixels; at most {max_pixels} are accepted."
        )


class _Bits:
    """Reads numbers from bits. Beyond the end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._bits = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        bits = self._bits >> self._left if self._left >= 0 else 0
        return bits & ((1 << count) - 1)

    def golomb(self) -> int:
        zeros = 0
        while zeros < 32 and not self.take(1):
            zeros += 1
        return (1 << zeros) - 1 + self.take(zeros)


def _hevc_size(unit: bytes) -> tuple[int, int]:
    """Width and height that a sequence parameter set gives."""
    # A byte 3 after two zeros only keeps the data from looking like the start of a unit.
    bits = _Bits(unit[2:].replace(b"\0\0\3", b"\0\0"))
    bits.take(4)
    layers = bits.take(3)
    bits.take(1 + 88 + 8)
    flags = [(bits.take(1), bits.take(1)) for _ in range(layers)]
    if layers:
        bits.take(2 * (8 - layers))
    for has_profile, has_level in flags:
        bits.take(88 * has_profile + 8 * has_level)
    bits.golomb()
    if bits.golomb() == 3:
        bits.take(1)
    return bits.golomb(), bits.golomb()


def _av1_size(unit: bytes) -> tuple[int, int]:
    """Width and height that a sequence header gives."""
    bits = _Bits(unit)
    bits.take(4)
    if bits.take(1):
        bits.take(5)
    else:
        delay_bits = 0
        if bits.take(1):
            bits.take(64)
            if bits.take(1):
                bits.golomb()
            if bits.take(1):
                delay_bits = bits.take(5) + 1
                bits.take(42)
        has_delay = bits.take(1)
        for _ in range(bits.take(5) + 1):
            bits.take(12)
            if bits.take(5) > 7:
                bits.take(1)
            if delay_bits and bits.take(1):
                bits.take(2 * delay_bits + 1)
            if has_delay and bits.take(1):
                bits.take(4)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return bits.take(width_bits) + 1, bits.take(height_bits) + 1
