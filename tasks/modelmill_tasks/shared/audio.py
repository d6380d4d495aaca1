"""Audio in requests, and its limits, which are checked before anything is decoded.

As with images, the bytes decide the format, not the declared media type. Videos are taken for their sound.
soundfile (libsndfile) is imported only where it is used. ``modelmill_backends.shared.audio`` decodes and
resamples.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, BinaryIO

from pydantic import AfterValidator, Field, ValidationInfo

from modelmill.errors import ErrorCode, MediaError
from modelmill.formats.frames import first_frame, stated_frames
from modelmill.formats.matroska import AUDIO, VIDEO, read_matroska
from modelmill.formats.mp4 import read_mp4
from modelmill.formats.sizes import is_cut, is_streamed_au
from modelmill.formats.sounds import SHOWN_FORMATS, SoundFormat, other_format, sound_format
from modelmill.formats.wav import read_wav
from modelmill.formats.window import Window
from modelmill_tasks.limits import MediaLimits, process_limits
from modelmill_tasks.shared.sources import checked, source_bytes

MEDIA_TYPES = {
    SoundFormat.WAV: "audio/wav",
    SoundFormat.FLAC: "audio/flac",
    SoundFormat.OGG: "audio/ogg",
    SoundFormat.MP3: "audio/mpeg",
    SoundFormat.AAC: "audio/aac",
    SoundFormat.AMR: "audio/amr",
    SoundFormat.AIFF: "audio/aiff",
    SoundFormat.CAF: "audio/x-caf",
    SoundFormat.AU: "audio/basic",
}
MAX_CHANNELS = 32
MIN_RATE, MAX_RATE = 1000, 384_000
"""Bounds of the sampling rate, in Hz."""
MAX_VALUES_PER_S = 192_000
"""A recording of the maximal length may have two channels of 96 kHz; a shorter one may have more."""
UNKNOWN_FRAMES = 2**62
"""If a stream does not give its length, libsndfile reports at least this many frames."""
DESCRIPTION = (
    f"Audio, or a video for its sound ({SHOWN_FORMATS}), as a data URL or base64; or the id of an uploaded "
    "file, or its URL, if the server fetches from that host."
)
OGG_FIRST = (b"\x01vorbis", b"OpusHead")
"""What an Ogg file's first packet begins with, if libsndfile must be able to open it."""


@dataclass(frozen=True, slots=True)
class AudioHeader:
    """The header of an audio file. What it does not tell is None."""

    format: SoundFormat
    rate: int | None = None
    """Frames a second."""
    channels: int | None = None
    frames: int | None = None
    """Samples of one channel."""
    seconds: float | None = None


class Clamped:
    """A file for libsndfile, which may seek to a place before the start if a header is damaged.

    An error in such a call cannot be raised; it would be printed.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.size = file.seek(0, 2)
        self._file = file
        file.seek(0)

    def seek(self, offset: int, whence: int = 0) -> int:
        start = (0, self._file.tell(), self.size)[whence]
        return self._file.seek(max(0, min(start + offset, self.size)))

    def tell(self) -> int:
        return self._file.tell()

    def read(self, count: int = -1) -> bytes:
        return self._file.read(count)


def audio_type(file: BinaryIO) -> str | None:
    """The media type of a file with sound (``audio/…`` or ``video/…``); None for other files."""
    form = sound_format(file)
    if form == SoundFormat.MP4:
        film = read_mp4(file)
        kind = "video" if b"vide" in film.tracks else "audio"
        return f"{kind}/quicktime" if kind == "video" and film.brand in (b"", b"qt  ") else f"{kind}/mp4"
    if form == SoundFormat.MATROSKA:
        head = read_matroska(file)
        kind = "video" if head and VIDEO in (head.tracks or ()) else "audio"
        return f"{kind}/webm" if head and head.webm else f"{kind}/x-matroska"
    return None if form is None else MEDIA_TYPES[form]


def check_audio(data: bytes | BinaryIO, limits: MediaLimits | None = None) -> float:
    """Refuses data whose header shows that they are not audio, or too long. Decodes nothing.

    Returns:
        The length in seconds; 0 if the header does not give it.

    Raises:
        MediaError: ``invalid_media`` or ``media_too_large``.
    """
    return read_header(data, limits).seconds or 0.0


def read_header(data: bytes | BinaryIO, limits: MediaLimits | None = None) -> AudioHeader:
    """What the file says of itself, which is checked against the bounds.

    Some files do not give their length, and the header of a container gives no rate. The decoder keeps the
    bounds of these.

    Args:
        data: The file.
        limits: Those of this process, if left out.

    Raises:
        MediaError: ``invalid_media`` or ``media_too_large``.
    """
    limits = limits or process_limits()
    file = io.BytesIO(data) if isinstance(data, bytes) else data
    form = sound_format(file)
    if form is None:
        other = other_format(file)
        if other is not None:
            raise invalid(f"This is {other}; audio is taken as {SHOWN_FORMATS}.")
        raise invalid(
            f"The bytes are not audio of a known format ({SHOWN_FORMATS}), or their header is damaged."
        )
    header = READERS.get(form, _of_library)(file, form)
    if header.rate is not None and header.channels is not None:
        most = max_frames(header.rate, header.channels, limits)
        if header.frames == 0:
            raise invalid("The audio is empty.")
        if header.frames is not None and header.frames > most:
            raise too_long(most / header.rate, header.frames / header.rate, header.rate, header.channels)
    elif header.seconds is not None and header.seconds > limits.max_audio_s:
        raise too_long(limits.max_audio_s, header.seconds)
    return header


def max_frames(rate: int, channels: int, limits: MediaLimits) -> int:
    """Frames that may be decoded of a recording of this form.

    Raises:
        MediaError: a recording of this form is not accepted.
    """
    if not MIN_RATE <= rate <= MAX_RATE:
        raise invalid(f"The audio's sampling rate is {rate} Hz; {MIN_RATE} to {MAX_RATE} Hz are accepted.")
    if not 0 < channels <= MAX_CHANNELS:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The audio has {channels} channels; at most {MAX_CHANNELS} are accepted.",
        )
    return int(limits.max_audio_s * min(rate, MAX_VALUES_PER_S / channels))


def too_long(limit_s: float, stated_s: float | None, rate: int = 0, channels: int = 0) -> MediaError:
    """``media_too_large``, with the limit in the message."""
    length = "longer" if stated_s is None else f"{stated_s:.0f} s long"
    form = f" of {channels} × {rate} Hz" if rate else ""
    return MediaError(
        ErrorCode.MEDIA_TOO_LARGE, f"The audio is {length}; at most {limit_s:g} s{form} are accepted."
    )


def invalid(message: str) -> MediaError:
    """``invalid_media`` with this message."""
    return MediaError(ErrorCode.INVALID_MEDIA, message)


def damaged(form: SoundFormat) -> MediaError:
    """``invalid_media`` for a file that is of this format, and cannot be read to its end."""
    return invalid(f"The {form} audio is damaged or truncated.")


def _of_wav(file: BinaryIO, form: SoundFormat) -> AudioHeader:
    wav = read_wav(file)
    if wav is None or not wav.rate or not wav.channels:
        raise damaged(form)
    if wav.cut:
        raise invalid(
            f"The WAV audio is damaged or truncated: its header states {wav.stated} bytes of sound, and "
            f"{wav.data_bytes} are there."
        )
    frames = 0 if not wav.data_bytes else wav.frames
    return AudioHeader(form, wav.rate, wav.channels, frames, None if frames is None else frames / wav.rate)


def _of_frames(file: BinaryIO, form: SoundFormat) -> AudioHeader:
    window = Window(file)
    first = first_frame(window)
    if first is None:
        raise damaged(form)
    at, frame = first
    if form == SoundFormat.AAC:
        # High-efficiency AAC plays at twice the rate that its frames state, and one channel may become two.
        return AudioHeader(form)
    count = stated_frames(window.at(at, 256), frame)
    frames = None if count is None else count * frame.samples
    return AudioHeader(
        form, frame.rate, frame.channels, frames, None if frames is None else frames / frame.rate
    )


def _of_mp4(file: BinaryIO, form: SoundFormat) -> AudioHeader:
    film = read_mp4(file)
    if film.too_large:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            "The MP4's index is larger than that of any recording that is accepted.",
        )
    if film.cut:
        raise damaged(form)
    if not film.indexed:
        raise invalid(
            "The MP4 audio is damaged or truncated, or a piece of a stream: its index (moov) is missing."
        )
    if b"soun" not in film.tracks:
        raise silent()
    return AudioHeader(form, seconds=film.seconds)


def _of_matroska(file: BinaryIO, form: SoundFormat) -> AudioHeader:
    head = read_matroska(file)
    if head is None or head.cut:
        raise damaged(form)
    if head.tracks is not None and AUDIO not in head.tracks:
        raise silent()
    return AudioHeader(form, seconds=head.seconds)


def silent() -> MediaError:
    """``invalid_media`` for a container without a sound track."""
    return invalid("The video has no sound.")


def _of_amr(_: BinaryIO, form: SoundFormat) -> AudioHeader:
    return AudioHeader(form)


def _of_library(file: BinaryIO, form: SoundFormat) -> AudioHeader:
    import soundfile

    if form in (SoundFormat.AIFF, SoundFormat.CAF, SoundFormat.AU) and is_cut(file, form):
        raise damaged(form)
    file.seek(0)
    first = file.read(64)[28:]
    file.seek(0)
    try:
        with soundfile.SoundFile(Clamped(file)) as sound:
            rate, channels, frames = sound.samplerate, sound.channels, sound.frames
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        if form == SoundFormat.FLAC or first.startswith(OGG_FIRST):
            raise damaged(form) from None
        # A codec that only the other decoder knows, as AAC in a CAF.
        return AudioHeader(form)
    if rate <= 0 or channels <= 0:
        raise damaged(form)
    # An Ogg file has its length on its last page. If the end is missing, the length reads 0.
    known = 0 <= frames < UNKNOWN_FRAMES and not (form == SoundFormat.OGG and frames == 0)
    if form == SoundFormat.AU:
        known = known and not is_streamed_au(Window(file).at(0, 12))
    return AudioHeader(form, rate, channels, frames if known else None, frames / rate if known else None)


READERS: dict[SoundFormat, Callable[[BinaryIO, SoundFormat], AudioHeader]] = {
    SoundFormat.WAV: _of_wav,
    SoundFormat.MP3: _of_frames,
    SoundFormat.AAC: _of_frames,
    SoundFormat.MP4: _of_mp4,
    SoundFormat.MATROSKA: _of_matroska,
    SoundFormat.AMR: _of_amr,
}
"""How the header of a format is read, if not by libsndfile."""


def _check_field(value: str, info: ValidationInfo) -> str:
    return checked(value, info, "audio", lambda text, limits: check_audio(source_bytes(text), limits))


Audio = Annotated[
    str,
    AfterValidator(_check_field),
    Field(
        description=DESCRIPTION,
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "audio/*"},
    ),
]
