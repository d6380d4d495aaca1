"""Text is read with the right characters, or not at all."""

from __future__ import annotations

import io

import pytest

from modelmill.errors import ConfigError
from modelmill.formats import encodings
from modelmill.formats.encodings import InputError, check_encoding, open_text

TEXT = "id,text\r\n1,\u65e5\u672c\u2028 \U0001f642\r\n2,Gr\u00f6\u00dfe\r\n"


def read(data: bytes, encoding: str = "") -> str:
    return open_text(io.BytesIO(data), "rows.csv", encoding).read()


@pytest.mark.parametrize(
    ("codec", "mark"),
    [
        ("utf-8", ""),
        ("utf-8", "\ufeff"),
        ("utf-16-le", "\ufeff"),
        ("utf-16-be", "\ufeff"),
        ("utf-32-le", "\ufeff"),
        ("utf-32-be", "\ufeff"),
    ],
)
def test_a_byte_order_mark_decides(monkeypatch: pytest.MonkeyPatch, codec: str, mark: str) -> None:
    monkeypatch.setattr(encodings, "BLOCK_BYTES", 7)  # characters lie on both sides of blocks

    assert read((mark + TEXT).encode(codec)) == TEXT


@pytest.mark.parametrize("codec", ["utf-16", "utf-16-le", "utf-32", "gb18030", "utf-8", "utf-8-sig"])
def test_the_caller_may_say_the_encoding(codec: str) -> None:
    assert read(TEXT.encode(codec), codec) == TEXT


@pytest.mark.parametrize(
    ("data", "encoding", "message"),
    [
        (b'{"a": 1}\n{"a": "\xe9"}\n', "", "line 2, byte 8: is not UTF-8; convert it, or give --encoding"),
        (b"a\r\nb\rcd\xff", "", "line 3, byte 3: is not UTF-8"),
        ("\u65e5\u672c\n\u65e5".encode("gbk"), "", "line 1, byte 1: is not UTF-8"),
        ("\u65e5\u672c\n\u65e5".encode("shift_jis"), "", "line 1, byte 1: is not UTF-8"),
        ("ab\nc\u65e5".encode("utf-16-le"), "", "line 1, byte 2: a NUL character"),
        (b"a\n\0\0", "", "line 2, byte 1: a NUL character"),
        (b"a\n\xed\xa0\xbd", "", "line 2, byte 1: is not UTF-8"),
        (b"ok\n\xe6\x97", "", "line 2, byte 1: ends in the middle of a character: it may be cut off"),
        (b"\xff\xfea\0\n\0\x00\xd8b\0", "", "line 2, byte 1: is not UTF-16-LE"),
        (b"a\x81", "cp1252", "line 1, byte 2: is not CP1252; convert it"),
        (b"\xef\xbb\xbfa", "latin-1", "begins with the byte order mark of utf-8, so it is not latin-1"),
        (b"a\0", "utf-16", "is not UTF-16"),
        (b"+2D0-", "utf-7", "line 1, byte 1: holds half of a character"),
    ],
)
@pytest.mark.parametrize("block_bytes", [3, 4096])
def test_other_bytes_are_refused_where_they_are(
    monkeypatch: pytest.MonkeyPatch, data: bytes, encoding: str, message: str, block_bytes: int
) -> None:
    monkeypatch.setattr(encodings, "BLOCK_BYTES", block_bytes)

    with pytest.raises(InputError) as caught:
        read(data, encoding)

    assert str(caught.value).startswith("rows.csv")
    assert message in str(caught.value)
    assert caught.value.is_cut == ("cut off" in message)


def test_lines_before_a_wrong_byte_can_be_read() -> None:
    text = open_text(io.BytesIO(b"one\ntwo\nth\xffree\n"), "x")

    assert [text.readline(), text.readline()] == ["one\n", "two\n"]
    with pytest.raises(InputError, match="line 3, byte 3"):
        text.readline()


def test_an_encoding_must_exist() -> None:
    for name in ("cp1252", "gbk", "shift_jis", "UTF-16"):
        check_encoding(name)
    for name in ("nope", "hex", "rot13", "a\0b"):
        with pytest.raises(ConfigError, match="there is no encoding"):
            check_encoding(name)
