"""Images in requests, and their limits, which are checked before anything is decoded.

The bytes decide the format, not the declared media type. Pillow is imported only where it is used, so that
importing a contract stays cheap.
"""

from __future__ import annotations

import io
import math
import threading
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

from pydantic import AfterValidator, Field, ValidationInfo

from modelmill.errors import ErrorCode, MediaError
from modelmill_tasks.limits import MediaLimits, process_limits
from modelmill_tasks.shared.sources import checked, source_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")

MAX_HEADER_READS = 100_000
"""Reads of a file until the image's size is known. A JPEG of 16 million empty segments took 94 s."""

ORIENTATION_TAG = 0x0112
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation to Pillow's ``Transpose`` that undoes it."""


def open_image(source: str | bytes | PILImage, limits: MediaLimits | None = None) -> PILImage:
    """Decodes an image fully: first frame, EXIF orientation applied, RGB.

    Args:
        source: A media field's text, an encoded file's bytes, or an image, which is converted only.
        limits: Those of this process, if left out.

    Raises:
        MediaError: it is not an image, is truncated, or has more pixels than allowed.
    """
    image = _open(source_bytes(source) if isinstance(source, str) else source, limits)
    try:
        image.load()
        return _to_rgb(_upright(image))
    except MemoryError:
        raise
    except Exception as error:
        # For damaged files Pillow raises almost any exception: struct.error, KeyError, IndexError, …
        raise MediaError(ErrorCode.INVALID_MEDIA, f"The image is damaged or truncated: {error}") from None


def check_image(value: str, limits: MediaLimits | None = None) -> None:
    """Refuses a text whose header shows that it is not an image, or has too many pixels. Decodes no pixel."""
    _open(source_bytes(value), limits)


@cache
def _pillow() -> Any:
    from PIL import Image

    Image.init()
    return Image


_pillow_lock = threading.Lock()
_pillow_limit = 0
"""Pixels that Pillow itself may allocate, as ``_raise_pillow_limit`` has set it."""


def _raise_pillow_limit(pixels: int) -> None:
    """Lets Pillow allocate ``pixels`` while it reads a header; it does so for a GIF's frame.

    The setting is one for the whole process, so it is the largest limit in use. ``_open`` then checks each
    image's size against the limit of its own request.
    """
    global _pillow_limit
    if pixels > _pillow_limit:
        with _pillow_lock:
            _pillow_limit = max(_pillow_limit, pixels)
            _pillow().MAX_IMAGE_PIXELS = _pillow_limit


def image_type(start: bytes) -> str | None:
    """The media type of an image that starts with these 16 bytes; None for other files and other formats."""
    name = _format_of(start)
    return None if name is None else f"image/{name.lower()}"


def check_image_file(file: BinaryIO, limits: MediaLimits | None = None) -> None:
    """As ``check_image``, for a file that is read no further than its header."""
    _open(file, limits)


def _open(source: bytes | BinaryIO | PILImage, limits: MediaLimits | None) -> PILImage:
    pillow, limit = _pillow(), (limits or process_limits()).max_image_pixels
    if isinstance(source, pillow.Image):
        image = cast("PILImage", source)
    else:
        file = io.BytesIO(source) if isinstance(source, bytes) else cast("BinaryIO", source)
        image = _identify(file, limit)
    width, height = image.size
    if width * height > limit:
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The image has {width} × {height} pixels; at most {limit} pixels are accepted.",
        )
    return image


def _format_of(start: bytes) -> str | None:
    pillow = _pillow()
    return next((name for name in IMAGE_FORMATS if pillow.OPEN[name][1](start)), None)


class _Bounded:
    """A file that allows a limited number of reads."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.reads_left: float = MAX_HEADER_READS

    def read(self, size: int = -1) -> bytes:
        self.reads_left -= 1
        if self.reads_left < 0:
            raise EOFError
        return self._file.read(size)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def _identify(file: BinaryIO, max_pixels: int) -> PILImage:
    """Image.open for the accepted formats, without its own check of the size: that message lacks the size."""
    pillow = _pillow()
    _raise_pillow_limit(max_pixels)
    name = _format_of(file.read(16))
    file.seek(0)
    if name is None:
        raise MediaError(
            ErrorCode.INVALID_MEDIA,
            f"The bytes are not an image of a known format ({', '.join(IMAGE_FORMATS)}).",
        )
    bounded = _Bounded(file)
    try:
        image = cast("PILImage", pillow.OPEN[name][0](bounded, ""))
    except (pillow.DecompressionBombError, pillow.DecompressionBombWarning):
        raise MediaError(
            ErrorCode.MEDIA_TOO_LARGE,
            f"The image's first frame has more than the {max_pixels} pixels that are accepted.",
        ) from None
    except MemoryError:
        raise
    except Exception:
        # As in open_image: almost any exception.
        raise MediaError(
            ErrorCode.INVALID_MEDIA, f"The header of the {name} image is damaged or truncated."
        ) from None
    # The pixels may take as many reads as they need.
    bounded.reads_left = math.inf
    return image


def _upright(image: PILImage) -> PILImage:
    """Applies the EXIF orientation. ImageOps.exif_transpose fails on EXIF data that it cannot write back."""
    try:
        orientation = image.getexif().get(ORIENTATION_TAG)
    except Exception:
        # The EXIF data are broken, the image is not: show it as it is stored, as viewers do.
        return image
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(cast("Any", method))


def _to_rgb(image: PILImage) -> PILImage:
    if image.mode.startswith("I;16") or image.mode == "I":
        # convert() would clip 16-bit greys to 255 instead of scaling them.
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode == "P" and "transparency" in image.info:
        # Pillow warns if a palette with transparency is converted to RGB in one step.
        image = image.convert("RGBA")
    return image if image.mode == "RGB" else image.convert("RGB")


def _check_field(value: str, info: ValidationInfo) -> str:
    return checked(value, info, "image", check_image)


Image = Annotated[
    str,
    AfterValidator(_check_field),
    Field(
        description="An image (JPEG, PNG, WebP, GIF, TIFF or BMP) as a data URL or base64; or the id of an "
        "uploaded file, or its URL, if the server fetches from that host.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/*"},
    ),
]
