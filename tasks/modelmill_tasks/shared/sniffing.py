"""Finds out the media type of an uploaded file from its bytes."""

from __future__ import annotations

from typing import BinaryIO

from modelmill.errors import ErrorCode, MediaError
from modelmill.formats.media import HEAD_BYTES, IMAGES, recognise
from modelmill.formats.sounds import SHOWN_FORMATS
from modelmill_tasks.limits import MediaLimits
from modelmill_tasks.shared.audio import audio_type, check_audio
from modelmill_tasks.shared.image_headers import no_image
from modelmill_tasks.shared.images import check_image_file

ANYTHING = "application/octet-stream"


def sniff(file: BinaryIO, limits: MediaLimits) -> tuple[str, MediaError | None]:
    """The media type, and why the file cannot be used. Reads the header and decodes nothing.

    A file of no known format is ``application/octet-stream``: no error. A format that is known and not taken
    gives an error that names it.
    """
    file.seek(0)
    form = recognise(file.read(HEAD_BYTES))
    media_type: str | None = None
    try:
        if form is not None and form.kind == "image":
            media_type = form.media_type
            check_image_file(file, limits)
        else:
            media_type = audio_type(file)
            if media_type is not None:
                check_audio(file, limits)
            elif form is not None:
                return ANYTHING, no_image(form)
    except MediaError as error:
        return media_type or ANYTHING, error
    return media_type or ANYTHING, None


def unfit(media_type: str, kind: str) -> MediaError | None:
    """Why a file of that type cannot be used as ``kind``, ``image`` or ``audio``; None if it can."""
    # A video can be heard.
    if media_type.startswith((f"{kind}/", "video/") if kind == "audio" else f"{kind}/"):
        return None
    if media_type == ANYTHING:
        formats = ", ".join(IMAGES) if kind == "image" else SHOWN_FORMATS
        what = "an image" if kind == "image" else "audio"
        return MediaError(ErrorCode.INVALID_MEDIA, f"The bytes are not {what} of a known format ({formats}).")
    return MediaError(ErrorCode.INVALID_MEDIA, f"The file is {media_type}, and {kind} is wanted.")
