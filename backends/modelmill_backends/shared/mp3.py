"""MP3s as the decoder needs them: without what stands before and behind the frames, and with a length.

Most begin with a frame that holds the number of frames ("Xing" or "Info"). For the others, the decoder
guesses the length from the first frame's bit rate and stops there.
"""

from __future__ import annotations

import io

from modelmill.formats.frames import HAS_FRAMES, LONGEST_FRAME, Frame, first_frame, frame_at, stated_frames
from modelmill.formats.window import Window
from modelmill_tasks.item_warnings import WarningCode, warn

ID3V1 = 128
"""Bytes of the tag "TAG" at the end."""
APE_FOOTER = 32


def prepared(data: bytes) -> bytes:
    """The frames only, and before them one that states how many there are."""
    first = first_frame(Window(io.BytesIO(data)))
    if first is None:
        return data
    start, frame = first
    end = _end(data)
    if stated_frames(data[start : start + 256], frame) is not None or frame.layer != 3:
        return data if (start, end) == (0, len(data)) else data[start:end]
    count, at = 0, start
    while (each := frame_at(data, at)) is not None and at < end:
        count, at = count + 1, at + each.length
    if at > end:
        warn(
            WarningCode.SOUND_CUT,
            "The MP3 ends in the middle of a frame; if it was cut, the model did not hear the rest.",
        )
    made = _stating(data[start : start + 4], frame, count)
    return made + data[start:end]


def _stating(header: bytes, frame: Frame, count: int) -> bytes:
    """A frame of the first frame's kind that states a number of frames."""
    # Without checksum and padding, at a bit rate that gives enough room.
    head = bytes([0xFF, header[1] | 1, 0x90 | header[2] & 0x0C, header[3]])
    first = head + bytes(frame.side) + b"Xing" + HAS_FRAMES.to_bytes(4, "big") + count.to_bytes(4, "big")
    made = frame_at(first, 0)
    return first.ljust(made.length, b"\0") if made else b""


def _end(data: bytes) -> int:
    """The end of the frames: tags at the file's end are no sound."""
    end = len(data)
    if data[end - ID3V1 : end - ID3V1 + 3] == b"TAG":
        end -= ID3V1
    else:
        # The last frame may end in a few zeros.
        zeros = end - len(data.rstrip(b"\0"))
        end -= zeros if zeros > LONGEST_FRAME else 0
    footer = data[end - APE_FOOTER : end]
    if footer[:8] == b"APETAGEX":
        # The size counts the footer and not the header, which the flags tell of.
        size = int.from_bytes(footer[12:16], "little") + (APE_FOOTER if footer[23] & 0x80 else 0)
        end -= size if size <= end else APE_FOOTER
    return end
