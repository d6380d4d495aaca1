"""Reads base64 and data URLs as people and programs write them, where the meaning is clear.

This is the slow path: texts that a strict decoder has refused come here. Each step is linear and makes no
object per character, since a text may be as long as a request.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_to_bytes

import pybase64

from modelmill.errors import ErrorCode, MediaError

MAX_PERCENT_CHARACTERS = 4 * 1024 * 1024
"""Of a data URL whose bytes are percent-encoded. Decoding makes an object for each percent sign."""
MAX_HEADER = 1024
"""Characters before the comma of a data URL."""
NEITHER = "The text is neither a data URL nor base64"
MAX_NAME = 1024
"""A longer text is taken for damaged base64, not for the name of a file."""

_WHITESPACE = b" \t\r\n\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_BYTES_LITERAL = re.compile(r"b?(['\"])")
_BARE_PREFIX = re.compile(r"(?:[\w.+-]{1,64}/[\w.+-]{1,64})?;?\s{0,8}base64,", re.IGNORECASE)
_INNER_PADDING = re.compile(r"=(?=[^=\s])")
_FOREIGN = re.compile(r"[^A-Za-z0-9+/=_\s-]")
_URL_LIKE = re.compile(r"(?:https?(?::?/|:?\\)|www\.|[a-z][a-z0-9+.-]{1,16}://)", re.IGNORECASE)
_FILE_LIKE = re.compile(
    r"(?:\.{1,2}/|/(?!9j/|/)|~/|[A-Za-z]:[\\/]).{0,200}|[^\r\n]*[^\r\n./\\]\.[A-Za-z0-9]{1,5}"
)
_ESCAPES = {
    escape: character
    for code, character in {"2B": "+", "2F": "/", "3D": "=", "2D": "-", "5F": "_"}.items()
    for escape in (f"%{code}", f"%{code.lower()}")
} | dict.fromkeys(("%0A", "%0a", "%0D", "%0d", "%20", "%09", "\\n", "\\r", "\\t"), "\n")
"""What percent-encoding and JSON within JSON make of characters of base64. None of them is base64 itself."""


def read_loosely(value: str) -> bytes:
    """The bytes of a data URL or of base64 in a form that strict decoders refuse.

    Taken are: no padding, the URL-safe alphabet, percent-encoding, line ends, spaces and quotes around, a
    ``base64,`` without the rest of a data URL, and data URLs whose bytes are percent-encoded.

    Raises:
        MediaError: ``invalid_media``, with what is wrong.
    """
    text = _unquoted(value.strip())
    if text[:5].lower() == "data:":
        header, comma, text = text.partition(",")
        if not comma or len(header) > MAX_HEADER:
            raise _refused("A data URL must have the form data:image/jpeg;base64,…")
        if not "".join(header.split()).lower().endswith(";base64") and not _is_base64(text):
            return _percent_decoded(text)
    elif (prefix := _BARE_PREFIX.match(text)) is not None:
        text = text[prefix.end() :]
    elif (hint := _hint(text)) is not None:
        raise _refused(hint)
    if "%" in text or "\\" in text:
        for escape, character in _ESCAPES.items():
            text = text.replace(escape, character)
    return _decoded(text)


def _unquoted(text: str) -> str:
    """Without quotes around it, and without the ``b`` that Python writes before them."""
    opening = _BYTES_LITERAL.match(text)
    if opening is None or len(text) < opening.end() + 1 or text[-1] != opening[1]:
        return text
    return text[opening.end() : -1].strip()


def _is_base64(text: str) -> bool:
    """Whether the text of a data URL is base64, although its header does not say so."""
    try:
        return bool(pybase64.b64decode(text, validate=True))
    except ValueError:
        return False


def _percent_decoded(text: str) -> bytes:
    if len(text) > MAX_PERCENT_CHARACTERS:
        raise _refused("A data URL of this length must be base64: data:image/jpeg;base64,…")
    return unquote_to_bytes(text)


def _decoded(text: str) -> bytes:
    raw = text.encode("ascii", "replace")
    packed = raw.translate(_URL_SAFE, _WHITESPACE).rstrip(b"=")
    has_whole_length = len(packed) % 4 == 0 or (len(packed) % 4 > 1 and b" " not in raw.strip())
    if has_whole_length:
        try:
            return pybase64.b64decode(packed + b"=" * (-len(packed) % 4), validate=True)
        except ValueError:
            pass
    raise _refused(_what_is_wrong(text, raw, len(packed)))


def _what_is_wrong(text: str, raw: bytes, characters: int) -> str:
    if (foreign := _FOREIGN.search(text)) is not None:
        shown = repr(foreign[0]) if foreign[0].isprintable() else ascii(foreign[0])
        return f"{NEITHER}: it holds the character {shown} at position {foreign.start() + 1}."
    if (padding := _INNER_PADDING.search(text)) is not None:
        return (
            f"{NEITHER}: it holds '=' at position {padding.start() + 1}, before its end. Perhaps two texts "
            "stand in one field."
        )
    if b" " in raw.strip():
        # Leaving them out could give other bytes than the sender meant.
        return (
            "The base64 text holds spaces, and without them its length is not that of base64. Forms turn '+' "
            "into a space: percent-encode it as %2B."
        )
    return (
        f"The base64 text has {characters} characters without its padding, one more than a multiple of 4: "
        "some are missing, or one is too many."
    )


def _hint(text: str) -> str | None:
    """What a short text is, if it is clearly no base64."""
    if len(text) > MAX_NAME:
        return None
    if _URL_LIKE.match(text):
        return (
            f"{NEITHER}. It looks like a URL; those that a server may fetch begin with http:// or https://."
        )
    if _FILE_LIKE.fullmatch(text):
        return (
            f"{NEITHER}. It looks like the name of a file, and the server does not read files by name: send "
            "the bytes as base64, or upload the file."
        )
    return None


def _refused(message: str) -> MediaError:
    return MediaError(ErrorCode.INVALID_MEDIA, message)
