"""Whether an AIFF, CAF or AU file was cut: its header states more sound than the file holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

from modelmill.formats.sounds import SoundFormat
from modelmill.formats.wav import MAX_CHUNKS, SLACK, is_placeholder
from modelmill.formats.window import Window


def is_cut(file: BinaryIO, form: SoundFormat) -> bool:
    """Whether bytes are missing. A placeholder for the size tells nothing, as with a WAV."""
    window = Window(file)
    found = _au(window) if form == SoundFormat.AU else next(_chunks(window, form), None)
    if found is None:
        return False
    at, stated = found
    return stated - (window.size - at) > SLACK and not is_placeholder(stated)


def is_streamed_au(head: bytes) -> bool:
    """Whether an AU file, by its first twelve bytes, states a placeholder for its size."""
    return is_placeholder(_of_au(head)[1])


def with_unknown_size(data: bytes) -> bytes:
    """The AU file with the placeholder that the format knows."""
    return data[:8] + b"\xff\xff\xff\xff" + data[12:]


def _au(window: Window) -> tuple[int, int]:
    return _of_au(window.at(0, 12))


def _of_au(head: bytes) -> tuple[int, int]:
    if head[:4] == b"dns.":
        return int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:12], "little")
    return int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:12], "big")


def _chunks(window: Window, form: SoundFormat) -> Iterator[tuple[int, int]]:
    """The place and stated size of the chunks that hold the sound."""
    at, width, wanted = (12, 4, b"SSND") if form == SoundFormat.AIFF else (8, 8, b"data")
    for _ in range(MAX_CHUNKS):
        head = window.at(at, 4 + width)
        if len(head) < 4 + width:
            return
        size = int.from_bytes(head[4:], "big")
        at += 4 + width
        if head[:4] == wanted:
            yield at, size
        at += size + (size % 2 if form == SoundFormat.AIFF else 0)
