"""Audio in requests, and its limits, which are checked before anything is decoded.

As with images, the bytes decide the format, not the declared media type. soundfile (libsndfile) is imported
only where it is used. ``modelmill_backends.shared.audio`` decodes and resamples.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Annotated, BinaryIO

from pydantic import AfterValidator, Field, ValidationInfo

from modelmill.errors import ErrorCode, MediaError
from modelmill_tasks.limits import MediaLimits, process_limits
from modelmill_tasks.shared.sources import checked, source_bytes

AUDIO_FORMATS = ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3")
"""libsndfile's names."""
MEDIA_TYPES = {
    **dict.fromkeys(("WAV", "WAVEX", "RF64"), "audio/wav"),
    "FLAC": "audio/flac",
    "OGG": "audio/ogg",
    "MP3": "audio/mpeg",
}
SHOWN_FORMATS = "WAV, FLAC, OGG, MP3"
MAX_CHANNELS = 32
MIN_RATE, MAX_RATE = 1000, 384_000
"""Bounds of the sampling rate, in Hz."""
MAX_VALUES_PER_S = 192_000
"""A recording of the maximal length may have two channels of 96 kHz; a shorter one may have more."""
UNKNOWN_FRAMES = 2**62
"""If a stream does not give its length, libsndfile reports at least this many frames."""


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """The header of an audio file."""

    format: str
    rate: int
    """Frames a second."""
    channels: int
    frames: int | None
    """Samples of one channel; None if the file does not give its length."""
    max_frames: int
    """Frames that may be decoded."""

    @property
    def seconds(self) -> float:
        """The length; 0 if the file does not give it."""
        return (self.frames or 0) / self.rate


def audio_type(file: BinaryIO) -> str | None:
    """The media type of an audio file; None for other files and other formats."""
    header = _identify(file, process_limits())
    return None if header is None else MEDIA_TYPES.get(header.format)


def check_audio(data: bytes | BinaryIO, limits: MediaLimits | None = None) -> float:
    """Refuses data whose header shows that they are not audio, or too long. Decodes nothing.

    Returns:
        The length in seconds; 0 if the header does not give it.

    Raises:
        MediaError: ``invalid_media`` or ``media_too_large``.
    """
    return read_header(data, limits).seconds


def read_header(data: bytes | BinaryIO, limits: MediaLimits | None = None) -> AudioHeader:
    """What the file says of itself, which is checked against the bounds.

    Args:
        data: The file.
        limits: Those of this process, if left out.

    Raises:
        MediaError: ``invalid_media`` or ``media_too_large``.
    """
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    header = _identify(file, limits or process_limits())
    if header is None or header.format not in AUDIO_FORMATS:
        raise MediaError(
            ErrorCode.INVALID_MEDIA,
            f"The bytes are not audio of a known format ({SHOWN_FORMATS}), or their header is damaged.",
        )
    if not MIN_RATE <= header.rate <= MAX_RATE:
        raise MediaError(
            ErrorCode.INVALID_MEDIA,
            f"The audio's sampling rate is {header.rate} Hz; {MIN_RATE} to {MAX_RATE} Hz are accepted.",
        )
    if header.channels > MAX_CHANNELS:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The audio has {header.channels} channels; at most {MAX_CHANNELS} are accepted.",
        )
    if header.frames == 0:
        raise MediaError(ErrorCode.INVALID_MEDIA, "The audio is empty.")
    # Some files do not give their length. For these, the decoder stops at the limit.
    if header.frames is not None and header.frames > header.max_frames:
        raise too_long(header)
    return header


def too_long(header: AudioHeader) -> MediaError:
    """``media_too_large``, with the limit in the message."""
    limit_s = header.max_frames / header.rate
    length = "longer" if header.frames is None else f"{header.seconds:.0f} s long"
    form = f"{header.channels} × {header.rate} Hz"
    return MediaError(
        ErrorCode.MEDIA_TOO_LARGE, f"The audio is {length}; at most {limit_s:g} s of {form} are accepted."
    )


def _identify(file: BinaryIO, limits: MediaLimits) -> AudioHeader | None:
    import soundfile

    file.seek(0)
    try:
        with soundfile.SoundFile(file) as sound:
            form, rate, channels, frames = sound.format, sound.samplerate, sound.channels, sound.frames
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        return None
    if rate <= 0 or channels <= 0:
        return None
    # An OGG file has its length on its last page. If the end is missing, the length reads 0.
    known = 0 <= frames < UNKNOWN_FRAMES and not (form == "OGG" and frames == 0)
    max_frames = int(limits.max_audio_s * min(rate, MAX_VALUES_PER_S / channels))
    return AudioHeader(form, rate, channels, frames if known else None, max_frames)


def _check_field(value: str, info: ValidationInfo) -> str:
    return checked(value, info, "audio", lambda text, limits: check_audio(source_bytes(text), limits))


Audio = Annotated[
    str,
    AfterValidator(_check_field),
    Field(
        description="Audio (WAV, FLAC, OGG or MP3) as a data URL or base64; or the id of an uploaded file, "
        "or its URL, if the server fetches from that host.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "audio/*"},
    ),
]
