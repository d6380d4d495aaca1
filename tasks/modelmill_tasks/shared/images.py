"""Images in requests, and their limits, which are checked before anything is decoded.

The bytes decide the format, not the declared media type. The header is read by ``image_headers``, which needs
no decoder; Pillow is imported only where pixels are decoded, in a worker.
"""

from __future__ import annotations

import io
import threading
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO, cast

from pydantic import AfterValidator, Field, ValidationInfo

from modelmill.errors import ErrorCode, MediaError
from modelmill.extras import missing_package
from modelmill.formats.media import AVIF, BMP, HEIC, TIFF, MediaFormat
from modelmill_tasks.item_warnings import WarningCode, warn
from modelmill_tasks.limits import MediaLimits, process_limits
from modelmill_tasks.shared.image_headers import (
    Frames,
    ImageHeader,
    check_pixels,
    file_data,
    read_header,
)
from modelmill_tasks.shared.pictures import to_rgb
from modelmill_tasks.shared.sources import checked, source_bytes

if TYPE_CHECKING:
    from PIL.Image import Image as PILImage

ORIENTATION_TAG = 0x0112
UPRIGHT = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
"""EXIF orientation to Pillow's ``Transpose`` that undoes it."""


def open_image(source: str | bytes | PILImage, limits: MediaLimits | None = None) -> PILImage:
    """Decodes an image fully: first frame, EXIF orientation applied, RGB.

    Transparent images are laid on white. What is lost on the way is told by ``item_warnings.warn``.

    Args:
        source: A media field's text, an encoded file's bytes, or an image, which is converted only.
        limits: Those of this process, if left out.

    Raises:
        MediaError: it is not an image, is truncated, or has more pixels than allowed.
    """
    max_pixels = (limits or process_limits()).max_image_pixels
    if isinstance(source, str):
        source = source_bytes(source)
    if not isinstance(source, bytes):
        check_pixels(source.size, max_pixels)
        return to_rgb(_turned(source, _own_orientation(source)))
    form, header = read_header(source, max_pixels)
    try:
        image, frames = _decoded(form, header, max_pixels)
        picture = to_rgb(image, header.samples)
    except (MemoryError, MediaError):
        raise
    except Exception as error:
        # For damaged files Pillow raises almost any exception: struct.error, KeyError, IndexError, …
        raise MediaError(
            ErrorCode.INVALID_MEDIA,
            f"The {form.name} image is damaged or truncated, or of a kind that cannot be decoded: {error}",
        ) from None
    _warn_of_frames(form, frames)
    return _turned(picture, _own_orientation(image) if form == AVIF else header.orientation)


def check_image(value: str, limits: MediaLimits | None = None) -> None:
    """Refuses a text whose header shows that it is not an image, or has too many pixels. Decodes no pixel."""
    read_header(source_bytes(value), (limits or process_limits()).max_image_pixels)


def check_image_file(file: BinaryIO, limits: MediaLimits | None = None) -> None:
    """As ``check_image``, for a file."""
    read_header(file_data(file), (limits or process_limits()).max_image_pixels)


@cache
def _decoders() -> Any:
    """Pillow, with the decoders of the formats that are taken."""
    from PIL import (
        AvifImagePlugin,
        BmpImagePlugin,
        GifImagePlugin,
        Image,
        JpegImagePlugin,
        PngImagePlugin,
        TiffImagePlugin,
        WebPImagePlugin,
    )

    return Image, {
        "AVIF": AvifImagePlugin.AvifImageFile,
        "BMP": BmpImagePlugin.BmpImageFile,
        "GIF": GifImagePlugin.GifImageFile,
        "JPEG": JpegImagePlugin.JpegImageFile,
        "PNG": PngImagePlugin.PngImageFile,
        "TIFF": TiffImagePlugin.TiffImageFile,
        "WebP": WebPImagePlugin.WebPImageFile,
    }


def _decoder(form: MediaFormat) -> Any:
    from PIL import features

    if form == HEIC:
        try:
            from pillow_heif import HeifImageFile
        except ImportError:
            raise MediaError(
                ErrorCode.INVALID_MEDIA,
                f"This worker cannot read HEIC images. {missing_package('pillow_heif')}. "
                "Or send the image as JPEG or PNG.",
            ) from None
        return HeifImageFile
    if form == AVIF and not features.check("avif"):
        raise MediaError(
            ErrorCode.INVALID_MEDIA,
            "This worker's Pillow was built without AVIF. Send the image as JPEG or PNG.",
        )
    return _decoders()[1][form.name]


_pillow_lock = threading.Lock()
_pillow_limit = 0
"""Pixels that Pillow itself may allocate, as ``_raise_pillow_limit`` has set it."""


def _raise_pillow_limit(pixels: int) -> None:
    """Lets Pillow allocate ``pixels`` while it opens a file.

    The setting is one for the whole process, so it is the largest limit in use. Each image's own size was
    checked against the limit of its own request.
    """
    global _pillow_limit
    if pixels > _pillow_limit:
        with _pillow_lock:
            _pillow_limit = max(_pillow_limit, pixels)
            _decoders()[0].MAX_IMAGE_PIXELS = _pillow_limit


def _decoded(form: MediaFormat, header: ImageHeader, max_pixels: int) -> tuple[PILImage, Frames]:
    """The first frame, and how many there are."""
    _raise_pillow_limit(max_pixels)
    image = cast("PILImage", _decoder(form)(io.BytesIO(header.pixels_only()), ""))
    # A decoder may have found another size than the header gives.
    check_pixels(image.size, max_pixels)
    # Decoders let their files go when they have decoded, so this comes before.
    frames = Frames(int(getattr(image, "n_frames", 1))) if form in (AVIF, HEIC) else header.frames()
    image.load()
    if form == BMP and image.mode == "RGBA" and image.getchannel("A").getextrema() == (0, 0):
        # Programs that know no alpha write zeros there.
        image.putalpha(255)
    return image, frames


def _warn_of_frames(form: MediaFormat, frames: Frames) -> None:
    if frames.count > 1:
        more, what = "more than " if frames.more else "", "pages" if form == TIFF else "frames"
        message = f"The file has {more}{frames.count} {what}; the model saw the first."
        warn(WarningCode.FRAMES_LEFT_OUT, message)


def _own_orientation(image: PILImage) -> object:
    """The orientation that an image carries; None if it carries none, or broken EXIF data."""
    try:
        return image.getexif().get(ORIENTATION_TAG)
    except Exception:
        return None


def _turned(image: PILImage, orientation: object) -> PILImage:
    """Undoes the EXIF orientation. ImageOps.exif_transpose fails on EXIF data that it cannot write back."""
    method = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
    return image if method is None else image.transpose(cast("Any", method))


def _check_field(value: str, info: ValidationInfo) -> str:
    return checked(value, info, "image", check_image)


Image = Annotated[
    str,
    AfterValidator(_check_field),
    Field(
        description="An image (JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF or HEIC) as a data URL or base64; or "
        "the id of an uploaded file, or its URL, if the server fetches from that host.",
        json_schema_extra={"contentEncoding": "base64", "contentMediaType": "image/*"},
    ),
]
