"""Values of media fields: what a column may hold, and the text that is sent for it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modelmill.client.media import File, payload_of
from modelmill.errors import ErrorCode, ModelmillError

MAX_FILE_BYTES = 64 * 1024 * 1024
"""A larger file is not read. By default, a server takes less in one request."""
AS_IT_IS = ("http://", "https://", "file:", "data:")
# White space fits one part only, so that a long text of it is read once.
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+(?:=+\s*)?")
_SHORTEST_BASE64 = 64


def media_text(value: Any, folder: Path | None) -> str:
    """The text that is sent for a file's bytes or for the name of a file.

    Args:
        value: A path, a URL, a ``file:`` id, a data URL, base64, a media value of the client, or a mapping
            with ``bytes`` or ``path``, as in data sets of images.
        folder: The folder of relative paths. None: text is not read as a path.

    Raises:
        ModelmillError: the file does not exist or is too large, or the value is none of these.
    """
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, File):
        return str(value)
    if isinstance(value, str | bytes | None) and not value:
        raise ModelmillError(ErrorCode.INVALID_MEDIA, "There is no file here, nor the name of one.")
    if not isinstance(value, str):
        return _data_url(value)
    if value[:8].lower().startswith(AS_IT_IS):
        return value
    if folder is not None and len(value) < 4096 and _is_file(path := folder / value):
        return _data_url(path)
    if len(value) >= _SHORTEST_BASE64 and _BASE64.fullmatch(value[: 4 * _SHORTEST_BASE64]):
        return value
    raise ModelmillError(ErrorCode.MEDIA_NOT_FOUND, f"There is no file {value[:200]}")


def media_name(value: Any) -> str | None:
    """The path or URL of a row's media; None if they have no name."""
    if isinstance(value, Mapping):
        value = value.get("path")
    if isinstance(value, Path):
        return str(value)
    if not isinstance(value, str) or len(value) > 1000 or value[:5].lower() == "data:":
        return None
    is_data = len(value) >= _SHORTEST_BASE64 and "." not in value[-6:] and _BASE64.fullmatch(value)
    return None if is_data else value


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _data_url(value: Any) -> str:
    try:
        payload = payload_of(value)
        if payload.size is not None and payload.size > MAX_FILE_BYTES:
            name = media_name(value) or "The file"
            message = f"{name} is larger than {MAX_FILE_BYTES // 2**20} MiB"
            raise ModelmillError(ErrorCode.MEDIA_TOO_LARGE, message)
        return payload.data_url()
    except OSError as error:
        message = f"{error.filename or 'The file'} cannot be read: {error.strerror or error}"
        raise ModelmillError(ErrorCode.MEDIA_NOT_FOUND, message) from None
    except TypeError as error:
        raise ModelmillError(ErrorCode.INVALID_MEDIA, str(error)) from None
