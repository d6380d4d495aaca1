"""Where the bytes of media come from: data URLs and base64, as people and programs write them."""

from __future__ import annotations

import base64
import textwrap
from typing import Any
from urllib.parse import quote

import pytest

from modelmill.errors import ErrorCode, MediaError
from modelmill_tasks.shared.sources import source_bytes
from tests.fixtures.image_files import as_text

DATA = bytes(range(256)) + b"\xfb\xff\xfe\xff"
"""Its base64 holds both characters that alphabets differ in, and padding."""
TEXT = as_text(DATA)
SAFE = base64.urlsafe_b64encode(DATA).decode()


def refusal(text: str) -> MediaError:
    with pytest.raises(MediaError) as caught:
        source_bytes(text)
    return caught.value


@pytest.mark.parametrize(
    "wrap",
    [
        "data:image/png;base64,{}".format,
        "DATA:image/png;BASE64,{}".format,
        "data:;base64,{}".format,
        "data:application/octet-stream;charset=x;base64,{}".format,
        "{}".format,
        lambda text: textwrap.fill(text, 76) + "\n",
        lambda text: textwrap.fill(text, 76).replace("\n", "\r\n"),
        lambda text: "data:image/png;base64,\n" + textwrap.fill(text, 60),
    ],
    ids=["data URL", "capitals", "no type", "parameters", "bare", "wrapped", "CRLF", "wrapped data URL"],
)
def test_text_gives_the_bytes(wrap: Any) -> None:
    assert source_bytes(wrap(TEXT)) == DATA


@pytest.mark.parametrize(
    "text",
    [
        TEXT.rstrip("="),
        SAFE,
        SAFE.rstrip("="),
        "data:image/png;base64," + SAFE.rstrip("="),
        quote(TEXT, safe=""),
        "data:image/png;base64," + quote(TEXT, safe=""),
        "data:image/png;base64," + TEXT.replace("/", "%2f").replace("+", "%2b"),
        f"  data:image/png;base64,{TEXT}\n",
        f'"{TEXT}"',
        f"'data:image/png;base64,{TEXT}'",
        f"b'{TEXT}'",
        f"base64,{TEXT}",
        f";base64,{TEXT}",
        f"image/png;base64,{TEXT}",
        f"data: image/png; base64, {TEXT}",
        f"data:image/png,{TEXT}",
        "data:image/png," + quote(DATA),
        textwrap.fill(TEXT, 76).replace("\n", "\\n"),
        f"\u00a0{TEXT}",
        textwrap.fill(SAFE.rstrip("="), 76),
    ],
)
def test_other_forms_are_taken_where_the_meaning_is_clear(text: str) -> None:
    assert source_bytes(text) == DATA


@pytest.mark.parametrize("value", ["", "data:image/png;base64,", "\n", "data:;base64,\n \n", "''"])
def test_nothing_is_no_media(value: str) -> None:
    error = refusal(value)

    assert (error.code, error.message) == (ErrorCode.INVALID_MEDIA, "The media are empty.")


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("data:image/png;base64", "must have the form data:image/jpeg;base64,…"),
        ("data:", "must have the form"),
        ("not base64!", "the character '!' at position 11"),
        ("café", "the character 'é' at position 4"),
        ("\ud800", r"the character '\ud800' at position 1"),
        ("YWJj\x00", r"the character '\x00' at position 5"),
        ("YWJj=YWJj", "'=' at position 5"),
        ("YWJjY", "5 characters without its padding"),
        ("YW Jj YWJ", "percent-encode it as %2B"),
        ("cat.jpg", "the name of a file"),
        ("/etc/passwd", "the name of a file"),
        ("./photos/cat", "the name of a file"),
        (r"C:\photos\cat.jpg", "the name of a file"),
        ("https//example.com/cat.jpg", "looks like a URL"),
        ("http:/example.com/cat", "looks like a URL"),
        ("www.example.com/cat.jpg", "looks like a URL"),
        ("ftp://example.com/cat.jpg", "looks like a URL"),
        ("s3://bucket/cat.jpg", "looks like a URL"),
    ],
)
def test_what_is_wrong_is_said(value: str, said: str) -> None:
    error = refusal(value)

    assert error.code is ErrorCode.INVALID_MEDIA
    assert said in error.message


@pytest.mark.parametrize(
    "value",
    [
        "http://example.com/cat.jpg",
        "https://example.com/cat.jpg",
        "HTTPS://EXAMPLE.COM",
        "http://169.254.169.254/latest/meta-data",
        "file:abc",
        "file:///etc/passwd",
        "FILE:abc",
    ],
)
def test_urls_and_files_are_refused_as_such(value: str) -> None:
    error = refusal(value)

    assert error.code is ErrorCode.MEDIA_SOURCE_REFUSED
    assert "data URL" in error.message
    assert value not in error.message


@pytest.mark.parametrize(
    "text",
    ["a " * 2_000_000, "%41" * 1_500_000, "data:," + "%41" * 1_300_000, "\\n" * 2_000_000, "=" * 4_000_000],
    ids=["spaces", "percent", "percent-encoded bytes", "escapes", "padding"],
)
def test_a_long_text_takes_linear_time(text: str) -> None:
    """Quadratic work would take hours, more than any test may."""
    try:
        source_bytes(text)
    except MediaError as error:
        assert len(error.message) < 300  # noqa: PT017
