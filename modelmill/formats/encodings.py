"""Text files: their encoding is decided once, by the byte order mark or by the caller, and never guessed."""

from __future__ import annotations

import codecs
import io
from pathlib import Path
from typing import IO

from modelmill.errors import ConfigError
from modelmill.formats.names import shown

BLOCK_BYTES = 256 * 1024
MARKS = (
    # The mark of UTF-32 begins with that of UTF-16, so it comes first.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
    (codecs.BOM_UTF8, "utf-8"),
)
"""Byte order marks, and what they say."""


class InputError(ConfigError):
    """Raised when a file of the input cannot be read as what it is taken for. The message says where.

    Attributes:
        is_cut: Whether the file ends too early, so that the whole file would begin with the same bytes.
    """

    def __init__(self, message: str, *, is_cut: bool = False) -> None:
        super().__init__(message)
        self.is_cut = is_cut


def check_encoding(name: str) -> None:
    """Checks that Python has a text encoding of that name.

    Raises:
        ConfigError: it has none.
    """
    try:
        codec = codecs.lookup(name)
        is_text = codec._is_text_encoding and codec.incrementaldecoder is not None
        if is_text:
            b"".decode(name)
    except (LookupError, ValueError):
        is_text = False
    if not is_text:
        raise ConfigError(f"there is no encoding {name!r}; others are utf-8, utf-16, latin-1, cp1252, gbk")


def mark_of(head: bytes) -> tuple[bytes, str]:
    """The byte order mark at the beginning of a file, and the encoding that it names; both empty if none."""
    return next(((mark, name) for mark, name in MARKS if head.startswith(mark)), (b"", ""))


class Utf8Stream(io.RawIOBase):
    """A text file as UTF-8 without byte order mark, read strictly.

    Args:
        file: The bytes of the file. It is closed with the stream.
        name: The file's name, for messages.
        encoding: What the caller says that the file is; empty for UTF-8 or what the byte order mark says.

    Raises:
        InputError: while reading: bytes that the encoding does not allow, or a NUL character. The message
            has the line, and the byte within it, both counted from 1. All text before it can be read first.
    """

    def __init__(self, file: IO[bytes], name: str | Path, encoding: str = "") -> None:
        self._file, self._name = file, shown(name)
        self._given = encoding
        self._encoding = ""
        self._decoder: codecs.IncrementalDecoder | None = None
        self._ready = memoryview(b"")
        self._error: InputError | None = None
        self._is_over = False
        self._line, self._byte, self._ends_with_cr = 1, 0, False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: object) -> int:
        target = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        while not self._ready and not self._is_over:
            if self._error is not None:
                raise self._error
            self._fill()
        count = min(len(target), len(self._ready))
        target[:count] = self._ready[:count]
        self._ready = self._ready[count:]
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()

    def _fill(self) -> None:
        # ``read`` would lose what comes before the end of packed data that were cut off.
        data = self._file.read1(BLOCK_BYTES)  # type: ignore[attr-defined]
        if self._decoder is None:
            data = self._begin(data)
            assert self._decoder is not None
        self._is_over = not data and not self._decoder.getstate()[0]
        try:
            text = self._decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            good = bytes(error.object[: error.start])
            text = good.decode(self._encoding)
            is_cut = not data and error.end == len(error.object)
            self._fail(text, "ends in the middle of a character: it may be cut off" if is_cut else "", is_cut)
        except UnicodeError:  # some codecs do not say where
            text = ""
            self._fail(text, "")
        nul = text.find("\0")
        if nul >= 0:
            text = text[:nul]
            self._fail(text, self._about_nul())
        try:
            self._ready = memoryview(text.encode())
        except UnicodeEncodeError as error:  # only codecs such as utf-7 let halves of pairs through
            text = text[: error.start]
            self._fail(text, "holds half of a character")
            self._ready = memoryview(text.encode())
        self._line, self._byte = self._position_after(text)
        self._ends_with_cr = text.endswith("\r") if text else self._ends_with_cr

    def _begin(self, data: bytes) -> bytes:
        mark, named = mark_of(data)
        self._encoding = self._given or named or "utf-8"
        if mark and self._given:
            canonical = codecs.lookup(self._given).name
            if canonical not in (named, named[:6], "utf-8-sig" if named == "utf-8" else named):
                raise InputError(
                    f"{self._name} begins with the byte order mark of {named}, so it is not {self._given}: "
                    "leave the encoding out"
                )
            self._encoding = named
        self._decoder = codecs.getincrementaldecoder(self._encoding)("strict")
        return data[len(mark) :]

    def _fail(self, before: str, reason: str, is_cut: bool = False) -> None:
        line, byte = self._position_after(before)
        if not reason:
            name = self._encoding.upper()
            reason = f"is not {name}; convert it" + ("" if self._given else ", or give --encoding")
        self._error = InputError(f"{self._name}, line {line}, byte {byte + 1}: {reason}", is_cut=is_cut)

    def _about_nul(self) -> str:
        reason = "a NUL character, which no text holds"
        if self._encoding == "utf-8":
            reason += "; if the file is UTF-16, give --encoding utf-16-le or utf-16-be"
        return reason

    def _position_after(self, text: str) -> tuple[int, int]:
        """The line after ``text``, and how many bytes of it ``text`` holds."""
        last = max(text.rfind("\n"), text.rfind("\r"))
        if last < 0:
            return self._line, self._byte + self._size_of(text)
        count = text.count("\n") + text.count("\r") - text.count("\r\n")
        count -= self._ends_with_cr and text.startswith("\n")
        return self._line + count, self._size_of(text[last + 1 :])

    def _size_of(self, text: str) -> int:
        return len(text.encode(self._encoding, "replace"))


def open_text(file: IO[bytes], name: str | Path, encoding: str = "") -> io.TextIOWrapper:
    """A file as text with its own line ends. ``Utf8Stream`` says what it refuses."""
    stream = io.BufferedReader(Utf8Stream(file, name, encoding), BLOCK_BYTES)
    return io.TextIOWrapper(stream, encoding="utf-8", newline="")
