"""Finds out the media type of an uploaded file from its bytes."""

from __future__ import annotations

from typing import BinaryIO

from modelmill.errors import ErrorCode, MediaError
from modelmill.formats.sounds import SHOWN_FORMATS
from modelmill_tasks.limits import MediaLimits
from modelmill_tasks.shared.audio import audio_type, check_audio
from modelmill_tasks.shared.images import IMAGE_FORMATS, check_image_file, image_type

ANYTHING = "application/octet-stream"


def sniff(file: BinaryIO, limits: MediaLimits) -> tuple[str, MediaError | None]:
    """The media type, and why the file cannot be used. Reads the header and decodes nothing.

    A file that is neither an image nor audio of a known format is ``application/octet-stream``: no error.
    """
    try:
        file.seek(0)
        media_type = image_type(file.read(16))
        file.seek(0)
        if media_type is not None:
            check_image_file(file, limits)
        else:
            media_type = audio_type(file)
            if media_type is not None:
                check_audio(file, limits)
    except MediaError as error:
        return media_type or ANYTHING, error
    return media_type or ANYTHING, None


def unfit(media_type: str, kind: str) -> MediaError | None:
    """Why a file of that type cannot be used as ``kind``, ``image`` or ``audio``; None if it can."""
    # A video can be heard.
    if media_type.startswith((f"{kind}/", "video/") if kind == "audio" else f"{kind}/"):
        return None
    if media_type == ANYTHING:
        formats = ", ".join(IMAGE_FORMATS) if kind == "image" else SHOWN_FORMATS
        what = "an image" if kind == "image" else "audio"
        return MediaError(ErrorCode.INVALID_MEDIA, f"The bytes are not {what} of a known format ({formats}).")
    return MediaError(ErrorCode.INVALID_MEDIA, f"The file is {media_type}, and {kind} is wanted.")
