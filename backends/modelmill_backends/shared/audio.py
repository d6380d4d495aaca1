"""Decodes audio into the input of speech models: one channel of floats at the model's sampling rate."""

from __future__ import annotations

import io
from collections.abc import Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from modelmill.catalogue import ModelEntry
from modelmill.errors import ErrorCode, MediaError
from modelmill_backends.failures import module_missing
from modelmill_backends.shared.mp3 import with_length
from modelmill_tasks.shared.audio import AudioHeader, read_header, too_long
from modelmill_tasks.shared.sources import source_bytes

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Samples = NDArray[np.float32]

BLOCK = 65_536
"""Frames that are decoded at a time."""
STREAMED = 0x7F00_0000
"""Programs that do not know a WAV's length yet write a size of at least this into its header."""
MP3_SHARE = 0.9
"""Share of its bytes and of its announced frames that an MP3 must give.

It is below 1 because encoders count the frames at both ends differently.
"""
QUIET_S = 0.1
"""A quiet place is the quietest stretch of this length, in seconds."""


def require_codecs(entry: ModelEntry) -> None:
    """For ``load`` of a runner: checks that the packages that decode audio are installed.

    Raises:
        ModelmillError: ``model_load_failed``, naming the missing package.
    """
    for module in ("soundfile", "soxr"):
        if find_spec(module) is None:
            raise module_missing(entry, module)


def open_audio(source: str | bytes, rate: int) -> Samples:
    """Decodes all of an audio file: averages its channels and resamples it; values are −1 to 1.

    If the audio exceeds the limits of ``modelmill_tasks.shared.audio``, decoding stops, even if the header
    states less.

    Args:
        source: A media field's text, or an encoded file's bytes.
        rate: Samples per second that the model needs.

    Returns:
        ``[samples]``, at least one sample.

    Raises:
        MediaError: it is not audio, or it is truncated, empty or too long.
    """
    import numpy as np

    data = source_bytes(source) if isinstance(source, str) else source
    header = read_header(data)
    if header.format == "MP3":
        data = with_length(data)
        header = read_header(data)
    if _is_cut(header.format, data):
        raise _truncated()
    blocks = list(_resampled(_mono_blocks(data, header), header.rate, rate))
    samples: Samples = np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
    if not samples.size:
        raise MediaError(ErrorCode.INVALID_MEDIA, "The audio is empty.")
    if not np.isfinite(samples).all():
        raise MediaError(ErrorCode.INVALID_MEDIA, "The audio holds values that are not finite numbers.")
    # Resampling can exceed the range, and a file of floats can hold any value.
    return np.clip(samples, -1.0, 1.0, out=samples)


def pieces(samples: Samples, rate: int, longest_s: float) -> list[tuple[int, Samples]]:
    """Cuts a recording into pieces of at most ``longest_s``, each at the quietest place of its last third.

    Returns:
        For each piece the index of its first sample, and its samples.
    """
    longest = int(longest_s * rate)
    found, start = [], 0
    while samples.size - start > longest:
        # The last piece has at least a quarter of the full length: short fragments are hard to recognise.
        length = min(longest, samples.size - start - longest // 4)
        end = start + _quietest(samples[start : start + length], rate)
        found.append((start, samples[start:end]))
        start = end
    return [*found, (start, samples[start:])]


def _quietest(samples: Samples, rate: int) -> int:
    import numpy as np

    begin = samples.size * 2 // 3
    energy = np.concatenate([[0.0], np.cumsum(np.square(samples[begin:], dtype=np.float64))])
    width = max(1, min(int(QUIET_S * rate), (samples.size - begin) // 2))
    return begin + int(np.argmin(energy[width:] - energy[:-width])) + width // 2


def _mono_blocks(data: bytes, header: AudioHeader) -> Iterator[Samples]:
    """The recording in blocks, its channels averaged."""
    import soundfile

    class Stream(soundfile.SoundFile):  # type: ignore[misc]
        """Reads from front to back only: a seek after each block would damage an MP3's next block."""

        def seekable(self) -> bool:
            return False

    done = 0
    buffer = io.BytesIO(data)
    try:
        with Stream(buffer) as file:
            while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
                done += len(block)
                if done > header.max_frames:
                    raise too_long(header)
                yield block.mean(axis=1) if header.channels > 1 else block[:, 0]
    except (soundfile.LibsndfileError, RuntimeError):
        raise _truncated() from None
    if header.format == "MP3":
        # If an MP3 states too short a length, as one that was joined from several, it is not fully decoded.
        whole = done >= MP3_SHARE * (header.frames or 0) and buffer.tell() >= MP3_SHARE * len(data)
    else:
        whole = done >= (header.frames or 0)
    if not whole:
        raise _truncated(header.format)


def _resampled(blocks: Iterator[Samples], own: int, wanted: int) -> Iterator[Samples]:
    import numpy as np

    if own == wanted:
        yield from blocks
        return
    import soxr

    # Block by block, so that a high sampling rate does not fill the memory.
    stream: Any = soxr.ResampleStream(own, wanted, 1, dtype="float32")
    for block in blocks:
        yield stream.resample_chunk(np.ascontiguousarray(block))
    yield stream.resample_chunk(np.zeros(0, np.float32), last=True)


def _is_cut(form: str, data: bytes) -> bool:
    """Whether the file's end is missing, for the formats where libsndfile does not report it."""
    if form in ("WAV", "WAVEX") and data[:4] == b"RIFF":
        at = 12
        while at + 8 <= len(data):
            size = int.from_bytes(data[at + 4 : at + 8], "little")
            if data[at : at + 4] == b"data":
                return len(data) - at - 8 < size < STREAMED
            at += 8 + size + size % 2
    if form == "OGG":
        # RFC 3533: 27 bytes, then the lengths of the segments (byte 26 says how many), then the segments.
        page = data[data.rfind(b"OggS") :]
        lengths = page[27 : 27 + page[26]] if len(page) > 26 else b""
        return len(page) < 27 or len(page) < 27 + page[26] + sum(lengths)
    return False


def _truncated(form: str = "") -> MediaError:
    message = "The audio is damaged or truncated."
    if form == "MP3":
        message = "The MP3 is damaged or truncated, or states a wrong length; convert it to another format."
    return MediaError(ErrorCode.INVALID_MEDIA, message)
