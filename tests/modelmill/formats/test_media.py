"""Files are recognised by their first bytes."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelmill.formats.media import HEAD_BYTES, IMAGES, recognise
from tests.fixtures.image_files import FORMATS, box, encoded, plain


def ftyp(*brands: bytes) -> bytes:
    return box(b"ftyp", brands[0], bytes(4), *brands[1:])


@pytest.mark.parametrize("kind", FORMATS)
def test_images_are_recognised(kind: str) -> None:
    name = {"HEIF": "HEIC", "WEBP": "WebP"}.get(kind, kind)

    found = recognise(encoded(plain((64, 64)), kind))

    assert found is not None
    assert (found.name, found.kind, found.media_type) == (name, "image", f"image/{name.lower()}")
    assert name in IMAGES


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (ftyp(b"avif", b"mif1"), "AVIF"),
        (ftyp(b"avis", b"avif"), "AVIF"),
        (ftyp(b"mif1", b"avif", b"miaf"), "AVIF"),
        (ftyp(b"mif1", b"heic"), "HEIC"),
        (ftyp(b"heix", b"mif1"), "HEIC"),
        (ftyp(b"msf1", b"hevc"), "HEIC"),
        (ftyp(b"mif1"), "HEIC"),
        (ftyp(b"isom", b"avif"), "AVIF"),
        (b"II+\0\x08\0\0\0", "TIFF"),
        (b"MM\0*\0\0\0\x08", "TIFF"),
    ],
)
def test_images_of_several_brands_and_orders(start: bytes, name: str) -> None:
    found = recognise(start)

    assert found is not None
    assert (found.name, found.kind) == (name, "image")


@pytest.mark.parametrize(
    ("start", "shown"),
    [
        (b"%PDF-1.7\n", "a PDF"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
        (b"\xef\xbb\xbf<?xml version='1.0'?>\n<!-- made by hand -->\n<svg>", "an SVG drawing"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b'{"detail": "not found"}', "a JSON text"),
        (b"\x00\x00\x00\x0cJXL \r\n\x87\n", "a JPEG XL image"),
        (b"\xff\x0a\x00", "a JPEG XL image"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "a JPEG 2000 image"),
        (b"8BPS\0\1", "a Photoshop document"),
        (b"II*\0\x10\0\0\0CR\2\0", "a RAW photo of a camera"),
        (ftyp(b"crx ", b"isom"), "a RAW photo of a camera"),
        (ftyp(b"isom", b"mp42"), "an MP4 or QuickTime video"),
        (ftyp(b"qt  "), "an MP4 or QuickTime video"),
        (b"\x1aE\xdf\xa3\x01", "a WebM or Matroska video"),
        (b"RIFF\0\0\0\0AVI LIST", "an AVI video"),
        (b"\x00\x00\x01\x00\x01\x00", "an ICO icon"),
        (b"P6 1 1 255\n", "a PNM image"),
        (bytes(128) + b"DICM", "a DICOM image"),
        (b"PK\x03\x04", "a ZIP archive or Office document"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
    ],
)
def test_what_is_sent_in_place_of_an_image_has_a_name_and_a_hint(start: bytes, shown: str) -> None:
    found = recognise(start)

    assert found is not None
    assert (found.shown, found.kind, found.media_type) == (shown, "other", "application/octet-stream")
    assert found.hint
    assert not found.hint.endswith(".")


@pytest.mark.parametrize("start", [b"", b"\0", b"hello, I am text", b"RIFF\0\0\0\0WAVEfmt ", b"OggS", b"ID3"])
def test_other_bytes_are_none_of_these(start: bytes) -> None:
    assert recognise(start) is None


@given(st.binary(max_size=2 * HEAD_BYTES))
def test_any_bytes_may_be_asked_about(start: bytes) -> None:
    assert recognise(start) == recognise(start[:HEAD_BYTES])


def test_only_the_standard_library_is_imported() -> None:
    code = "import sys, modelmill.formats.media; print({'PIL', 'pydantic', 'httpx'} & sys.modules.keys())"

    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"
