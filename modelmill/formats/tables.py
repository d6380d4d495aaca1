"""What a file with rows is: JSON lines, a JSON array, CSV, TSV, plain text or Parquet; and how it is packed.

The content decides where it is unambiguous, then the extension, in any case of letters.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import mimetypes
import zlib
from enum import StrEnum
from pathlib import Path
from typing import IO

from modelmill.formats.encodings import InputError, mark_of
from modelmill.formats.names import shown

HEAD_BYTES = 64 * 1024
"""``kind_of`` looks at this much of a file."""


class Kind(StrEnum):
    """What the rows of a file are."""

    JSONL = "jsonl"
    """One JSON object in each line."""
    JSON = "json"
    """One array of JSON objects, or JSON objects one after the other."""
    CSV = "csv"
    TSV = "tsv"
    TEXT = "text"
    """Each line is a row with one column, ``text``."""
    PARQUET = "parquet"
    FILES = "files"
    """The file itself is one row, such as a photograph."""


_EXTENSIONS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".ldjson", ".jl"), Kind.JSONL),
    ".json": Kind.JSON,
    ".csv": Kind.CSV,
    **dict.fromkeys((".tsv", ".tab"), Kind.TSV),
    **dict.fromkeys((".parquet", ".pq"), Kind.PARQUET),
}
_PLAIN_TEXT = (".txt", ".text")
_PACKED = (".gz", ".gzip", ".bz2", ".xz", ".lzma")
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
_PARQUET = b"PAR1"
_UNPACK_IT = "unpack it first"
_REFUSED = (
    (b"PK\x03\x04", "is a zip archive or an office document", "unpack it, or save the table as CSV (UTF-8)"),
    (b"PK\x05\x06", "is an empty zip archive", _UNPACK_IT),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an office document", "save the table as CSV (UTF-8)"),
    (b"\x28\xb5\x2f\xfd", "is packed with zstd", "unpack it first: unzstd"),
    (b"\x04\x22\x4d\x18", "is packed with lz4", "unpack it first: unlz4"),
    (b"\x1f\x9d", "is packed with compress", _UNPACK_IT),
    (b"7z\xbc\xaf\x27\x1c", "is a 7z archive", _UNPACK_IT),
    (b"Rar!\x1a\x07", "is a rar archive", _UNPACK_IT),
    (b"SQLite format 3\x00", "is an SQLite database", "export the table as CSV"),
    (b"ARROW1", "is an Arrow file", "save it as Parquet"),
    (b"FEA1", "is a Feather file", "save it as Parquet"),
    (b"Obj\x01", "is an Avro file", "save it as Parquet"),
    (b"ORC", "is an ORC file", "save it as Parquet"),
    (b"PARE", "is an encrypted Parquet file", "save it without encryption"),
)
"""The first bytes of files that hold no rows that can be read here, what they are, and what to do."""
READ_ERRORS = (EOFError, OSError, zlib.error, lzma.LZMAError)
"""What reading a file may raise, packed or not."""


def kind_by_name(name: str | Path) -> Kind | None:
    """The kind that a file's name says; None if it says none."""
    return _EXTENSIONS.get(_suffix(name))


def kind_of(path: Path, name: str | Path, given: Kind | None = None, encoding: str = "") -> Kind:
    """The kind of a file, from its content and its name.

    Args:
        path: The file.
        name: Its name for messages, and for its extension.
        given: What the caller says that it is.
        encoding: The text encoding, if the caller says it.

    Raises:
        InputError: it cannot be read, it is a file of another program, or it may be several kinds.
    """
    if given is Kind.FILES:
        return given
    head = _head(path, name)
    text = _as_text(head, encoding)
    if text is None:
        _refuse_others(head, name)
    if text is None and head.startswith(_PARQUET):
        if _packing_of(path):
            raise InputError(f"{shown(name)} is a packed Parquet file: {_UNPACK_IT}")
        return Kind.PARQUET
    by_name = given or kind_by_name(name)
    if by_name is Kind.PARQUET:
        raise InputError(f"{shown(name)} is not a Parquet file", is_cut=not head)
    if by_name is not None:
        return by_name
    if text is None:
        # Reading it as text says where it is none.
        return Kind.TEXT if _suffix(name) in _PLAIN_TEXT else Kind.FILES
    return _kind_of_text(text, name)


def open_bytes(path: Path, name: str | Path) -> IO[bytes]:
    """A file's bytes, unpacked. What it is packed with is known by its content.

    Raises:
        OSError: it cannot be opened.
    """
    packing = _packing_of(path)
    if packing == _GZIP:
        return gzip.GzipFile(path)  # type: ignore[return-value]
    if packing == _BZIP2:
        return bz2.BZ2File(path)
    if packing == _XZ:
        return lzma.LZMAFile(path)
    if not path.stat().st_size and Path(name).suffix.lower() in _PACKED:
        raise InputError(f"{shown(name)} is empty, so it is not what its name says", is_cut=True)
    return path.open("rb")


def read_error(error: Exception, where: str) -> InputError:
    """The sentence for one of ``READ_ERRORS``.

    Args:
        error: What was raised.
        where: The file, and how far it was read.
    """
    if isinstance(error, InputError):
        return error
    if isinstance(error, EOFError) or "end-of-stream" in str(error):
        return InputError(
            f"{where}: the packed data end too early, so the file was cut off. Get the whole file, and run "
            "the same command with --resume",
            is_cut=True,
        )
    if isinstance(error, gzip.BadGzipFile) and str(error).startswith("Not a gzipped"):
        return InputError(f"{where}: other bytes follow the packed data. The file is damaged")
    if isinstance(error, OSError) and error.errno is not None:
        return InputError(f"{where}: cannot be read: {error.strerror}")
    return InputError(f"{where}: the packed data are damaged ({error})")


def _suffix(name: str | Path) -> str:
    """The extension in small letters, without that of a packed file."""
    path = Path(name)
    return (Path(path.stem) if path.suffix.lower() in _PACKED else path).suffix.lower()


def _packing_of(path: Path) -> bytes:
    with path.open("rb") as file:
        head = file.read(8)
    return next((magic for magic in (_GZIP, _BZIP2, _XZ) if head.startswith(magic)), b"")


def _head(path: Path, name: str | Path) -> bytes:
    """The first bytes, unpacked. Of packed data that end too early, what can be unpacked."""
    head = b""
    try:
        with open_bytes(path, name) as file:
            while len(head) < HEAD_BYTES and (more := file.read1(HEAD_BYTES - len(head))):  # type: ignore[attr-defined]
                head += more
    except READ_ERRORS as error:
        if not head:
            raise read_error(error, shown(name)) from None
    return head


def _refuse_others(head: bytes, name: str | Path) -> None:
    for magic, what, advice in _REFUSED:
        if head.startswith(magic):
            raise InputError(f"{shown(name)} {what}: {advice}")
    if head[257:262] == b"ustar":
        raise InputError(f"{shown(name)} is a tar archive: {_UNPACK_IT}")


def _as_text(head: bytes, encoding: str) -> str | None:
    mark, named = mark_of(head)
    try:
        text = codecs.getincrementaldecoder(named or encoding or "utf-8")("strict").decode(head[len(mark) :])
    except UnicodeError:
        return None
    return None if "\0" in text else text


def _kind_of_text(text: str, name: str | Path) -> Kind:
    if str(mimetypes.guess_type(name)[0]).partition("/")[0] in ("image", "audio", "video"):
        return Kind.FILES
    start = text.lstrip()
    if start.startswith("{") or (start.startswith("[") and start[1:].lstrip()[:1] in ("{", "]")):
        return Kind.JSON
    if _suffix(name) in _PLAIN_TEXT and not _looks_like_table(text):
        return Kind.TEXT
    kinds = "jsonl, json, csv, tsv or text (each line is a row)"
    raise InputError(f"{shown(name)} does not say what its rows are: give --input-format {kinds}")


def _looks_like_table(text: str) -> bool:
    """Whether the lines have the same number of tabs, semicolons or vertical bars."""
    lines = [line for line in text.splitlines()[:50] if line.strip()]
    counts = [{line.count(mark) for line in lines} for mark in "\t;|"]
    return len(lines) > 1 and any(len(count) == 1 and count != {0} for count in counts)
