"""Values of Python as the wire carries them: files, bytes, images and arrays become data URLs.

A string goes as it is and is never taken for a path: text of a caller must not read local files.
Pillow and numpy are not imported to look whether a value is theirs; where there is such a value, they are.
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
    """A file that was uploaded. As the value of a media field, and as ``str``, it is its ``file:`` id."""

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
    """Bytes that are sent: held in memory, or in a file that is read when it is sent.

    Attributes:
        name: File name for an upload.
        size: Bytes; None where only reading tells.
    """

    content: bytes | Path | IO[bytes]
    name: str
    media_type: str
    size: int | None

    def read(self) -> bytes:
        """All of it; an open file from its start, where it can go back there."""
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
        """The same, held in memory."""
        content = self.read()
        return Payload(content, self.name, self.media_type, len(content))

    def data_url(self) -> str:
        return f"data:{self.media_type};base64,{base64.b64encode(self.read()).decode()}"

    def open(self) -> IO[bytes]:
        """A stream of it. What was not open before is for the caller to close."""
        if isinstance(self.content, bytes):
            return io.BytesIO(self.content)
        return self.content.open("rb") if isinstance(self.content, Path) else self.content

    @property
    def is_borrowed(self) -> bool:
        """Whether the stream is the user's own."""
        return not isinstance(self.content, bytes | Path)


def data_url(source: Path | bytes) -> str:
    """A file or its bytes as a data URL. The server looks at the bytes: the media type is a courtesy."""
    return payload_of(source).data_url()


def media_in(value: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """All values that JSON has no form for, with where they stand, such as ``messages.0.image``."""
    if value is None or isinstance(value, str | bool | int | float):
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from media_in(inner, f"{where}.{key}" if where else str(key))
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            # Long lists of numbers are common, and hold no media.
            if not isinstance(inner, float | int | str):
                yield from media_in(inner, f"{where}.{index}" if where else str(index))
    else:
        yield where, value


def payload_of(value: Any, where: str = "") -> Payload:
    """A media value as what is sent. Images and arrays become PNG, which takes a while.

    Raises:
        TypeError: it is nothing that can be sent; names ``where``.
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
        f"{_at(where)}A {type(value).__name__} cannot be sent. Media are given as pathlib.Path, bytes, an "
        "open binary file, an image of Pillow, an array of numpy, or modelmill.client.File."
    )


def plain(value: Any) -> Any:
    """A number of numpy as one of Python; None for what is no such number."""
    return value.item() if _is_of(value, "numpy", "generic") else None


def to_json(value: Any, resolved: Mapping[int, Any]) -> bytes:
    """JSON, compact; values that are not JSON's are looked up in ``resolved`` by their ``id()``."""
    return json.dumps(
        value,
        ensure_ascii=False,
        allow_nan=False,
        separators=(",", ":"),
        default=lambda media: resolved[id(media)],
    ).encode()


def path_hint(fields: Mapping[str, Any], where: str) -> str:
    """What to say where a refused media field holds the text of a path; empty where it does not.

    The file is not looked for: the sentence may reach whoever sent the text, and would tell them.
    """
    value: Any = fields
    for part in where.split("."):
        try:
            value = value[int(part)] if isinstance(value, list | tuple) else value[part]
        except (KeyError, IndexError, ValueError, TypeError):
            return ""
    if not isinstance(value, str) or len(value) > MAX_PATH_LENGTH:
        return ""
    # Base64 knows no dot, and a data URL is refused for what it holds.
    if not re.fullmatch(r"(?!data:)[^\r\n]*[^\r\n./\\]\.[A-Za-z0-9]{1,5}", value) or "://" in value:
        return ""
    return " A string is never read as a file: for a file's contents, pass pathlib.Path(…)."


def _is_of(value: Any, module: str, name: str) -> bool:
    # Whoever has such a value has imported its module.
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
        raise TypeError(f"An image of mode {image.mode} has no PNG that shows the same: convert it first.")
    orientation = image.getexif().get(ORIENTATION_TAG)
    if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "RGBa", "La", "PA"):
        image = image.convert("RGBA" if image.mode in ("RGBa", "La", "PA") else "RGB")
    buffer = io.BytesIO()
    options: dict[str, Any] = {}
    if orientation not in (None, 1):
        # The server turns it as it would turn the file that it came from.
        options["exif"] = image.getexif()
        options["exif"][ORIENTATION_TAG] = orientation
    image.save(buffer, "PNG", compress_level=1, **options)
    return Payload(buffer.getvalue(), "image.png", "image/png", buffer.tell())


def _image_of_array(array: Any, where: str) -> Any:
    shape = tuple(array.shape)
    is_image = len(shape) == 2 or (len(shape) == 3 and shape[2] in (1, 3, 4))
    if str(array.dtype) != "uint8" or not is_image or 0 in shape:
        held = f"{array.dtype} of {' × '.join(map(str, shape)) or 'no dimension'}"
        raise TypeError(
            f"{_at(where)}An array is sent as an image when it holds uint8 of height × width, or height × "
            f"width × 1, 3 or 4; this one holds {held}. For numbers, pass array.tolist()."
        )
    try:
        from PIL import Image
    except ImportError as error:
        raise TypeError(f"{_at(where)}Sending an array needs Pillow: pip install pillow") from error
    return Image.fromarray(array[:, :, 0] if shape[2:] == (1,) else array)
