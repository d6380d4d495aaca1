"""Converts Python values for the wire: files, bytes, images and arrays become data URLs.

A string is sent as it is and never read as a path, because a caller's text must not read local files.
This module does not import Pillow or numpy to check types: if a value is theirs, they are imported already.
"""

from __future__ import annotations

import base64
import io
import json
import mimetypes
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

ORIENTATION_TAG = 0x0112
MAX_PATH_LENGTH = 1024


@dataclass(frozen=True, slots=True)
class File:
    """An uploaded file. As the value of a media field, and as ``str``, it stands for its ``file:`` id."""

    id: str
    bytes: int = 0
    media_type: str = ""
    sha256: str = ""
    name: str | None = None
    created_at: str | None = None
    expires_at: str | None = None

    def __str__(self) -> str:
        return self.id

    @classmethod
    def from_document(cls, document: Mapping[str, Any]) -> File:
        known = {name: document[name] for name in cls.__slots__ if name in document}
        return cls(**known)


@dataclass(frozen=True, slots=True)
class Payload:
    """Bytes to send: in memory, or in a file that is read when it is sent.

    Attributes:
        name: File name for an upload.
        size: In bytes; None if it is unknown until the file has been read.
    """

    content: bytes | Path | IO[bytes]
    name: str
    media_type: str
    size: int | None

    def read(self) -> bytes:
        """All bytes. An open file is read from its start if it is seekable."""
        if isinstance(self.content, bytes):
            return self.content
        if isinstance(self.content, Path):
            return self.content.read_bytes()
        if self.content.seekable():
            self.content.seek(0)
        content = self.content.read()
        if not isinstance(content, bytes):
            raise TypeError("Open files in binary mode: open(path, 'rb').")
        return content

    def loaded(self) -> Payload:
        """The same payload, in memory."""
        content = self.read()
        return Payload(content, self.name, self.media_type, len(content))

    def data_url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.read()).decode()}"

    def open(self) -> IO[bytes]:
        """A stream of the bytes. The caller closes it, unless ``is_borrowed``."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        return self.content.open("rb") if isinstance(self.content, Path) else self.content

    @property
    def is_borrowed(self) -> bool:
        """Whether the stream belongs to the user, who closes it."""
        return not isinstance(self.content, bytes | Path)


def data_url(source: Path | bytes) -> str:
    """A file or its bytes as a data URL. The server detects the media type from the bytes."""
    return payload_of(source).data_url()


def media_in(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All values that JSON cannot hold, each with its place, such as ``messages.0.image``."""
    if value is None or isinstance(value, str | bool | int | float):
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from media_in(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            # Skip numbers and texts: long lists of numbers are common and hold no media.
            if not isinstance(inner, float | int | str):
                yield from media_in(inner, f"{where}.{index}" if where else str(index))
    else:
        yield where, value


def payload_of(value: Any, where: str = "") -> Payload:
    """The payload for a media value. Images and arrays become PNG, which takes a while.

    Raises:
        TypeError: the value cannot be sent; the message names ``where``.
    """
    if isinstance(value, Path):
        return Payload(value, value.name, _media_type(value.name), value.stat().st_size)
    if isinstance(value, bytes | bytearray | memoryview):
        content = bytes(value)
        return Payload(content, "data", "application/octet-stream", len(content))
    if _is_of(value, "PIL.Image", "Image"):
        return _png(value)
    if _is_of(value, "numpy", "ndarray"):
        return _png(_image_of_array(value, where))
    if isinstance(value, io.TextIOBase):
        raise TypeError(f"{_at(where)}Open files in binary mode: open(path, 'rb').")
    if hasattr(value, "read") and hasattr(value, "seekable"):
        name = Path(str(getattr(value, "name", "data"))).name
        return Payload(value, name, _media_type(name), _size_of(value))
    raise TypeError(
        f"{_at(where)}A {type(value).__name__} cannot be sent. Pass media as pathlib.Path, bytes, an open "
        "binary file, a Pillow image, a numpy array, or modelmill.client.File."
    )


def plain(value: Any) -> Any:
    """A number of numpy as a number of Python; None for any other value."""
    return value.item() if _is_of(value, "numpy", "generic") else None


def to_json(value: Any, resolved: Mapping[int, Any]) -> bytes:
    """Compact JSON. Values that JSON cannot hold are looked up in ``resolved`` by their ``id()``."""
    return json.dumps(
        value,
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
        default=lambda media: resolved[id(media)],
    ).encode()


def path_hint(fields: Mapping[str, Any], where: str) -> str:
    """A hint for the error message if a refused media field holds a path as text; otherwise empty.

    This function does not check whether the file exists. The message may reach the sender of the text, who
    must not learn that.
    """
    value: Any = fields
    for part in where.split("."):
        try:
            value = value[int(part)] if isinstance(value, list | tuple) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return ""
    if not isinstance(value, str) or len(value) > MAX_PATH_LENGTH:
        return ""
    # Base64 has no dots, and a data URL is refused for its content.
    if not re.fullmatch(r"(?!data:)[^\r\n]*[^\r\n./\\]\.[A-Za-z0-9]{1,5}", value) or "://" in value:
        return ""
    return " A string is never read as a file. To send a file's contents, pass pathlib.Path(…)."


def _is_of(value: Any, module: str, name: str) -> bool:
    # If such a value exists, its module is imported.
    loaded = sys.modules.get(module)
    kind = getattr(loaded, name, None)
    return isinstance(kind, type) and isinstance(value, kind)


def _at(where: str) -> str:
    return f"{where}: " if where else ""


def _media_type(name: str) -> str:
    guessed = mimetypes.guess_type(name)[0] or ""
    is_media = guessed.startswith(("image/", "audio/", "video/"))
    return guessed if is_media else "application/octet-stream"


def _size_of(file: IO[bytes]) -> int | None:
    if not file.seekable():
        return None
    at = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(at)
    return size


def _png(image: Any) -> Payload:
    if image.mode in ("F", "RGBX", "I;16B"):
        raise TypeError(f"PNG cannot hold an image of mode {image.mode} without loss. Convert it first.")
    orientation = image.getexif().get(ORIENTATION_TAG)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBa", "La", "PA"):
        image = image.convert("RGBA" if image.mode in ("RGBa", "La", "PA") else "RGB")
    buffer = io.BytesIO()
    options: dict[str, Any] = {}
    if orientation not in (None, 1):
        # The PNG keeps the orientation tag, so the server turns the image as it would turn the original file.
        options["exif"] = image.getexif()
        options["exif"][ORIENTATION_TAG] = orientation
    image.save(buffer, "PNG", compress_level=1, **options)
    return Payload(buffer.getvalue(), "image.png", "image/png", buffer.tell())


def _image_of_array(array: Any, where: str) -> Any:
    shape = tuple(array.shape)
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    if str(array.dtype) != "uint8" or not is_image or 0 in shape:
        found = f"{array.dtype} of {' × '.join(map(str, shape)) or 'no dimension'}"
        raise TypeError(
            f"{_at(where)}An array is sent as an image if it holds uint8 of height × width, or height × "
            f"width × 1, 3 or 4. This one holds {found}. For numbers, pass array.tolist()."
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise TypeError(f"{_at(where)}Sending an array needs Pillow: pip install pillow") from error
    return Image.fromarray(array[:, :, 0] if shape[2:] == (1,) else array)
