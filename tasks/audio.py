"""Audio in requests, and the bounds it must keep before it is decoded.

The bytes say what they are, as with images. soundfile (libsndfile) is imported where it is used; decoding
and resampling are the business of ``backends.audio``.
"""

from __future__ import annotations

import io
from typing import Annotated

from pydantic import AfterValidator, Field, ValidationInfo

from modelmill.errors import ErrorCode, MediaError
from modelmill.settings import get_settings
from tasks.contract import field_problem
from tasks.media import source_bytes

AUDIO_FORMATS = ("WAV", "WAVEX", "FLAC", "OGG", "MP3")
"""libsndfile's names."""
SHOWN_FORMATS = "WAV, FLAC, OGG, MP3"
MAX_CHANNELS = 32


def check_audio(data: bytes) -> float:
    """Refuses what the header alone tells: not audio, or too long. Decodes nothing.

    Returns:
        The length in seconds.

    Raises:
        MediaError: ``invalid_media`` or ``media_too_large``.
    """
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            form, rate, channels, frames = file.format, file.samplerate, file.channels, file.frames
    except (soundfile.LibsndfileError, RuntimeError, TypeError):
        form, rate, channels, frames = "", 0, 0, 0
    if form not in AUDIO_FORMATS or rate <= 0 or channels <= 0:
        raise MediaError(
            ErrorCode.INVALID_MEDIA, f"The bytes are not audio of a known format ({SHOWN_FORMATS})."
        )
    limit_s = get_settings().max_audio_s
    # Some files do not tell how long they are; their decoding is bounded as well.
    seconds = frames / rate if 0 < frames < 2**62 else 0.0
    if seconds > limit_s:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The audio is {seconds:.0f} s long; at most {limit_s:g} s are accepted.",
        )
    if channels > MAX_CHANNELS:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The audio has {channels} channels; at most {MAX_CHANNELS} are accepted.",
        )
    return seconds


def _check_field(value: str, info: ValidationInfo) -> str:
    if not (info.context or {}).get("trusted"):
        try:
            check_audio(source_bytes(value))
        except MediaError as error:
            raise field_problem(error.code, error.message) from None
    return value


Audio = Annotated[
    str,
    AfterValidator(_check_field),
    Field(
        description="Audio (WAV, FLAC, OGG or MP3) as a data URL or base64.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "audio/*"},
    ),
]
