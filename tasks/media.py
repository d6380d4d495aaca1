"""Media in requests: where the bytes come from, and the bounds they must keep before they are decoded.

A media field is text on the wire: a data URL or bare base64. The declared media type is not
trusted; the bytes say what they are. Pillow is imported where it is used, so that importing a
contract stays cheap.
"""

from __future__ import annotations

import binascii
import io
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, cast

import pybase64
from pydantic import AfterValidator, Field, ValidationInfo

from modelmill.errors import ErrorCode, MediaError
from modelmill.settings import get_settings
from tasks.contract import field_problem

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")

ORIENTATION_TAG = 0x0112
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation to Pillow's ``Transpose`` that undoes it."""


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
        try:
            data = pybase64.b64decode(value, validate=True)
        except binascii.Error:
            # Line-wrapped base64 is common in mail and in shell output.
            data = pybase64.b64decode("".join(value.split()), validate=True)
    except ValueError:  # binascii.Error is one, and so is what text outside of ASCII raises
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
    image = _open(source_bytes(source) if isinstance(source, str) else source)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:
        # Damaged files make Pillow raise nearly anything: struct.error, KeyError, IndexError, …
        raise MediaError(ErrorCode.INVALID_MEDIA, f"The image is damaged or truncated: {error}") from None


def check_image(value: str) -> None:
    """Refuses what the header alone tells: not an image, or too many pixels. Decodes no pixel."""
    _open(source_bytes(value))


@cache
def _pillow() -> Any:
    from PIL import Image

    Image.init()
    # For what Pillow allocates while it reads a header: a GIF's frame. Every image's size is checked below.
    Image.MAX_IMAGE_PIXELS = get_settings().max_image_pixels
    return Image


def _open(source: bytes | PILImage) -> PILImage:
    pillow = _pillow()
    if isinstance(source, pillow.Image):
        image: PILImage = source
    else:
        image = _identify(cast("bytes", source))
    width, height = image.size
    limit = get_settings().max_image_pixels
    if width * height > limit:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The image has {width} × {height} pixels; at most {limit} pixels are accepted.",
        )
    return image


def _identify(data: bytes) -> PILImage:
    """Image.open for our formats, but without its own check of the size, which does not tell the size."""
    pillow = _pillow()
    name = next((name for name in IMAGE_FORMATS if pillow.OPEN[name][1](data[:16])), None)
    if name is None:
        raise MediaError(
            ErrorCode.INVALID_MEDIA,
            f"The bytes are not an image of a known format ({', '.join(IMAGE_FORMATS)}).",
        )
    try:
        return cast("PILImage", pillow.OPEN[name][0](io.BytesIO(data), ""))
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The image's first frame has more than the {pillow.MAX_IMAGE_PIXELS} pixels that are accepted.",
        ) from None
    except MemoryError:
        raise
    except Exception:
        # As in open_image: nearly anything.
        raise MediaError(
            ErrorCode.INVALID_MEDIA, f"The header of the {name} image is damaged or truncated."
        ) from None


def _upright(image: PILImage) -> PILImage:
    """Applies the EXIF orientation. ImageOps.exif_transpose would fail on EXIF that it cannot write back."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:
        # Broken EXIF in a sound image: viewers show it as it is stored.
        return image
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(cast("Any", method))


def _to_rgb(image: PILImage) -> PILImage:
    if image.mode.startswith("I;16") or image.mode == "I":
        # convert() clips 16-bit greys to 255 instead of scaling them.
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode == "P" and "transparency" in image.info:
        # Straight to RGB, Pillow warns of a palette whose transparency is lost.
        image = image.convert("RGBA")
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
