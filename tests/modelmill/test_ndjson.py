"""Lines of NDJSON, however their bytes arrive."""

from __future__ import annotations

import pytest

from modelmill.ndjson import LineSplitter


@pytest.mark.parametrize("size", [1, 3, 1000])
def test_lines_come_out_whole_however_they_come_in(size: int) -> None:
    text = b"one\n\n  \ntwo two two\r\n" + b"x" * 50 + b"\nlast"
    splitter = LineSplitter(20)
    found: list[bytes | None] = []

    for start in range(0, len(text), size):
        found += splitter.feed(text[start : start + size])

    assert [*found, *splitter.end()] == [b"one", b"two two two", None, b"last"]
    assert list(splitter.end()) == []


def test_a_line_of_the_limit_is_one_and_a_longer_one_is_not_held() -> None:
    splitter = LineSplitter(10)
    assert list(splitter.feed(b"x" * 10 + b"\n")) == [b"x" * 10]
    for _ in range(1000):
        assert list(splitter.feed(b"x" * 1000)) == []
    assert len(splitter._begun) <= 10
    assert list(splitter.feed(b"\nnext\n")) == [None, b"next"]


def test_lines_end_at_newlines_only() -> None:
    splitter = LineSplitter()
    text = '{"a":"\u2028\x0b\x85"}\n\n{"b"'.encode()

    lines = [line for at in range(len(text)) for line in splitter.feed(text[at : at + 1])]

    assert lines == ['{"a":"\u2028\x0b\x85"}'.encode()]
    assert list(splitter.end()) == [b'{"b"']
