"""Media in requests: where the bytes come from, and the bounds they must keep before they are decoded.

A media field is text on the wire: a data URL or bare base64. The declared media type is not
trusted; the bytes say what they are. Pillow is imported where it is used, so that importing a
contract stays cheap.
"""

from __future__ import annotations

import base64
import binascii
import io
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import AfterValidator, Field, ValidationInfo

from modelmill.errors import ErrorCode, MediaError
from modelmill.settings import get_settings
from tasks.contract import field_problem

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")


def source_bytes(value: str) -> bytes:
    """The bytes behind a media field.

    Args:
        value: ``data:image/jpeg;base64,…`` or bare base64.

    Raises:
        MediaError: ``media_source_refused`` for URLs and file ids, ``invalid_media`` for the rest.
    """
    scheme = value[:8].lower()
    if scheme.startswith(("http://", "https://")):
        raise MediaError(
            ErrorCode.MEDIA_SOURCE_REFUSED,
            "This server does not fetch URLs. Send the file itself, as a data URL or base64.",
        )
    if scheme.startswith("file:"):
        raise MediaError(
            ErrorCode.MEDIA_SOURCE_REFUSED,
            "This server has no uploaded files. Send the file itself, as a data URL or base64.",
        )
    if scheme.startswith("data:"):
        header, comma, value = value.partition(",")
        if not comma or not header.lower().endswith(";base64"):
            raise MediaError(
                ErrorCode.INVALID_MEDIA, "A data URL must have the form data:image/jpeg;base64,…"
            )
    try:
        data = base64.b64decode(value, validate=True)
    except binascii.Error:
        # Line-wrapped base64 is common in mail and in shell output.
        try:
            data = base64.b64decode("".join(value.split()), validate=True)
        except (binascii.Error, ValueError):
            raise MediaError(ErrorCode.INVALID_MEDIA, "The text is neither a data URL nor base64.") from None
    except ValueError:
        raise MediaError(ErrorCode.INVALID_MEDIA, "The text is neither a data URL nor base64.") from None
    if not data:
        raise MediaError(ErrorCode.INVALID_MEDIA, "The media are empty.")
    return data


def open_image(source: str | bytes | PILImage) -> PILImage:
    """Decodes an image fully: first frame, EXIF orientation applied, RGB.

    Args:
        source: A media field's text, an encoded file's bytes, or an image, which is converted only.

    Raises:
        MediaError: it is not an image, is truncated, or has more pixels than allowed.
    """
    from PIL import ImageOps

    image = _open(source_bytes(source) if isinstance(source, str) else source)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise MediaError(ErrorCode.INVALID_MEDIA, f"The image is damaged or truncated: {error}") from None
    return _to_rgb(ImageOps.exif_transpose(image))


def check_image(value: str) -> None:
    """Refuses what the header alone tells: not an image, or too many pixels. Decodes no pixel."""
    _open(source_bytes(value))


@cache
def _pillow() -> Any:
    from PIL import Image

    # The size is checked below, against our own limit and with its numbers in the message.
    Image.MAX_IMAGE_PIXELS = None
    return Image


def _open(source: bytes | PILImage) -> PILImage:
    pillow = _pillow()
    if isinstance(source, pillow.Image):
        image: PILImage = source
    else:
        try:
            image = pillow.open(io.BytesIO(cast("bytes", source)), formats=IMAGE_FORMATS)
        except (OSError, SyntaxError, ValueError):
            raise MediaError(
                ErrorCode.INVALID_MEDIA,
                f"The bytes are not an image of a known format ({', '.join(IMAGE_FORMATS)}).",
            ) from None
    width, height = image.size
    limit = get_settings().max_image_pixels
    if width * height > limit:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The image has {width} × {height} pixels; at most {limit} pixels are accepted.",
        )
    return image


def _to_rgb(image: PILImage) -> PILImage:
    if image.mode.startswith("I;16") or image.mode == "I":
        # convert() clips 16-bit greys to 255 instead of scaling them.
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_field(value: str, info: ValidationInfo) -> str:
    if not (info.context or {}).get("trusted"):
        try:
            check_image(value)
        except MediaError as error:
            raise field_problem(error.code, error.message) from None
    return value


Image = Annotated[
    str,
    AfterValidator(_check_field),
    Field(
        description="An image (JPEG, PNG, WebP, GIF, TIFF or BMP) as a data URL or base64.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/*"},
    ),
]
