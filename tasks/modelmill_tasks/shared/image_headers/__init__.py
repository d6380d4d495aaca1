"""Reads the headers of images, one module for each format, without a decoder.

Untrusted files of up to a request's size come here. Each reader looks at a bounded number of parts, counts
what would make a decoder work far longer than the picture's pixels need, and says which parts of the file the
decoder gets.
"""

from __future__ import annotations

import io
import mmap
import struct
from collections.abc import Callable
from functools import partial
from typing import BinaryIO

from modelmill.errors import MediaError
from modelmill.formats.media import (
    AVIF,
    BMP,
    GIF,
    HEAD_BYTES,
    HEIC,
    IMAGES,
    JPEG,
    PNG,
    TIFF,
    WEBP,
    MediaFormat,
    recognise,
)
from modelmill_tasks.shared.image_headers import bmp, boxes, gif, jpeg, png, tiff, webp
from modelmill_tasks.shared.image_headers.common import (
    Data,
    Frames,
    ImageHeader,
    Samples,
    check_pixels,
    damaged,
    refused,
)

__all__ = ["Frames", "ImageHeader", "Samples", "check_pixels", "file_data", "read_header"]

MAPPED_BYTES = 1024 * 1024
"""Larger files are mapped. Uploads of this size lie on disk."""

_READERS: dict[MediaFormat, Callable[[Data, int], ImageHeader]] = {
    JPEG: jpeg.read,
    PNG: png.read,
    WEBP: webp.read,
    GIF: gif.read,
    TIFF: tiff.read,
    BMP: bmp.read,
    AVIF: partial(boxes.read, form="AVIF"),
    HEIC: partial(boxes.read, form="HEIC"),
}


def file_data(file: BinaryIO) -> Data:
    """A file's bytes, to be read by place. Large files are mapped, so that they take no memory."""
    size = file.seek(0, io.SEEK_END)
    if size > MAPPED_BYTES and not isinstance(file, io.BytesIO):
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    file.seek(0)
    return file.read()


def read_header(data: Data, max_pixels: int) -> tuple[MediaFormat, ImageHeader]:
    """The format and the header of an image.

    Args:
        data: The whole file.
        max_pixels: Width times height that are accepted.

    Raises:
        MediaError: ``invalid_media`` if it is no image of a format that is taken, or its header is damaged;
            ``media_too_large`` if it has too many pixels, or too many parts of another kind.
    """
    form = recognise(data[:HEAD_BYTES])
    if form is None or form.kind != "image":
        raise no_image(form)
    try:
        header = _READERS[form](data, max_pixels)
    except (IndexError, ValueError, OverflowError, struct.error):
        raise damaged(form.name) from None
    if not header.width or not header.height:
        raise refused(f"The {form.name} image has no pixels, or its header is damaged or truncated.")
    check_pixels((header.width, header.height), max_pixels)
    return form, header


def no_image(form: MediaFormat | None) -> MediaError:
    """Says what the bytes are instead of an image."""
    formats = ", ".join(IMAGES)
    if form is None:
        return refused(f"The bytes are not an image of a known format ({formats}).")
    return refused(f"This is {form.shown}: {form.hint}. Images may be {formats}.")
