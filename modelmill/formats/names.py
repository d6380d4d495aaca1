"""Names of files in messages and in outputs. A name may hold any bytes: line ends, or what is not UTF-8."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

_NOT_SHOWN = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_BYTE = re.compile(r"[\udc80-\udcff]")
_LIKE_ESCAPED = re.compile(r"\\x[89a-f][0-9a-f]|[\udc80-\udcff]")
_SURROGATE = re.compile(r"[\ud800-\udfff]")


def shown(name: str | Path) -> str:
    """A name for a message: one line, without characters that a terminal would obey."""
    return _NOT_SHOWN.sub(_escape, os.fspath(name))


def storable_name(text: str) -> str:
    r"""A file's name that can be written as UTF-8: bytes that are not UTF-8 become ``\xff``.

    Two different names stay different: in a name that has such bytes, or that looks as if it had, each
    backslash is doubled.
    """
    if text.isascii() and "\\x" not in text:
        return text
    if _LIKE_ESCAPED.search(text):
        text = _BYTE.sub(_escape, text.replace("\\", "\\\\"))
    return _SURROGATE.sub(_escape, text)


def storable_data(value: Any) -> Any:
    r"""A value for JSON whose texts can be written as UTF-8: halves of surrogate pairs become ``\ud83d``."""
    if isinstance(value, str):
        return _SURROGATE.sub(_escape, value)
    if isinstance(value, dict):
        return {storable_data(name): storable_data(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [storable_data(each) for each in value]
    return value


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte that is not UTF-8
        return f"\\x{code - 0xDC00:02x}"
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
