"""Recognises images, and files that people send in place of images, by their first bytes.

Nothing is parsed here beyond a signature. A format that is taken has the kind ``image``; each other format
has a name and a hint, so that a refusal can say what the file is and what to do.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

HEAD_BYTES = 512
"""How many bytes of a file ``recognise`` looks at."""

IMAGES = ("JPEG", "PNG", "WebP", "GIF", "TIFF", "BMP", "AVIF", "HEIC")
"""The names of the image formats that are taken."""


@dataclass(frozen=True, slots=True)
class MediaFormat:
    """A kind of file.

    Attributes:
        name: As people write it: ``JPEG``, ``PDF``.
        media_type: ``image/jpeg``; ``application/octet-stream`` for formats that are not taken.
        kind: ``image`` for the formats of ``IMAGES``, and ``other``.
        hint: For other formats: what the sender can do. A sentence without its full stop.
    """

    name: str
    media_type: str
    kind: str
    hint: str = ""

    @property
    def shown(self) -> str:
        """The name with its article: ``a PNG image``, ``an AVIF image``, ``a PDF``."""
        article = "an" if self.name[0] in "AEIO" or self.name[:2] in _SPELT_WITH_A_VOWEL else "a"
        return f"{article} {self.name}{' image' if self.kind == 'image' else ''}"


_SPELT_WITH_A_VOWEL = ("MP", "HT", "XM", "SV")


def _image(name: str) -> MediaFormat:
    return MediaFormat(name, f"image/{name.lower()}", "image")


JPEG, PNG, WEBP, GIF, TIFF, BMP, AVIF, HEIC = map(_image, IMAGES)

_CONVERT = "convert it to PNG or JPEG"
_DEVELOP = "develop it to JPEG or PNG"
_FRAMES = "take its frames as images, or its sound as WAV or MP3"


def _other(name: str, hint: str = _CONVERT) -> MediaFormat:
    return MediaFormat(name, "application/octet-stream", "other", hint)


SVG = _other("SVG drawing", "render it as PNG")
HTML = _other(
    "HTML page",
    "send the file itself; a download that needs a login, or that failed, often gives such a page",
)
JSON = _other("JSON text", "send the bytes of the file itself")
RAW = _other("RAW photo of a camera", _DEVELOP)
PDF = _other("PDF", "render its pages as images")
POSTSCRIPT = _other("PostScript file", "render its pages as images")
JPEG_2000, JPEG_XL = _other("JPEG 2000 image"), _other("JPEG XL image")
MP4, MATROSKA = _other("MP4 or QuickTime video", _FRAMES), _other("WebM or Matroska video", _FRAMES)
_UNPACK = "unpack it and send the file itself"

_SIGNATURES: tuple[tuple[bytes, MediaFormat], ...] = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    (b"GIF87a", GIF),
    (b"GIF89a", GIF),
    (b"II*\0\x10\0\0\0CR", RAW),
    (b"II*\0", TIFF),
    (b"MM\0*", TIFF),
    (b"II+\0", TIFF),
    (b"MM\0+", TIFF),
    (b"BM", BMP),
    (b"%PDF-", PDF),
    (b"%!PS", POSTSCRIPT),
    (b"\xc5\xd0\xd3\xc6", POSTSCRIPT),
    (b"\x00\x00\x00\x0cjP  ", JPEG_2000),
    (b"\xff\x4f\xff\x51", JPEG_2000),
    (b"\xff\x0a", JPEG_XL),
    (b"\x00\x00\x00\x0cJXL ", JPEG_XL),
    (b"8BPS", _other("Photoshop document")),
    (b"gimp xcf", _other("GIMP document")),
    (b"\x00\x00\x01\x00", _other("ICO icon")),
    (b"icns", _other("ICNS icon")),
    (b"v/1\x01", _other("OpenEXR image")),
    (b"#?RADIANCE", _other("Radiance HDR image")),
    (b"DDS ", _other("DDS texture")),
    (b"SIMPLE  =", _other("FITS image")),
    (b"FUJIFILMCCD-RAW", RAW),
    (b"IIRO", RAW),
    (b"IIRS", RAW),
    (b"MMOR", RAW),
    (b"IIU\0", RAW),
    (b"FOVb", RAW),
    (b"\x1aE\xdf\xa3", MATROSKA),
    (b"FLV\x01", _other("Flash video", _FRAMES)),
    (b"\x00\x00\x01\xba", _other("MPEG video", _FRAMES)),
    (b"\x00\x00\x01\xb3", _other("MPEG video", _FRAMES)),
    (b"PK\x03\x04", _other("ZIP archive or Office document", _UNPACK)),
    (b"\x1f\x8b", _other("gzip file", _UNPACK)),
    (b"7z\xbc\xaf\x27\x1c", _other("7z archive", _UNPACK)),
    (b"Rar!\x1a\x07", _other("RAR archive", _UNPACK)),
    (
        b"version https://git-lfs",
        _other("Git LFS pointer", "fetch the file that it stands for: git lfs pull"),
    ),
)

AVIF_BRANDS = frozenset({b"avif", b"avis"})
HEIC_BRANDS = frozenset(
    {
        b"heic",
        b"heix",
        b"heim",
        b"heis",
        b"hevc",
        b"hevx",
        b"hevm",
        b"hevs",
        b"mif1",
        b"mif2",
        b"msf1",
    }
)
_SVG_ROOT = re.compile(rb"<svg[\s>]")
_HTML_START = re.compile(rb"\s*<(?:!doctype html|html|head|body)\b", re.IGNORECASE)


def recognise(start: bytes) -> MediaFormat | None:
    """The format of a file that begins with these bytes; None if it is none that is known here.

    Args:
        start: The file's first ``HEAD_BYTES``, or all of a shorter file. More bytes are not looked at.
    """
    start = bytes(start[:HEAD_BYTES])
    for signature, found in _SIGNATURES:
        if start.startswith(signature):
            return found
    for look in _LOOKS:
        if (found_here := look(start)) is not None:
            return found_here
    return None


def _riff(start: bytes) -> MediaFormat | None:
    if start[:4] != b"RIFF":
        return None
    return {b"WEBP": WEBP, b"AVI ": _other("AVI video", _FRAMES)}.get(start[8:12])


def _boxes(start: bytes) -> MediaFormat | None:
    """ISO base media files (AVIF, HEIC, MP4, …), by the brands of their first box."""
    if start[4:8] != b"ftyp":
        return None
    end = min(int.from_bytes(start[:4], "big"), len(start))
    brands = [start[8:12], *(start[at : at + 4] for at in range(16, end - 3, 4))]
    if brands[0] in AVIF_BRANDS or (brands[0] in HEIC_BRANDS and not AVIF_BRANDS.isdisjoint(brands)):
        return AVIF
    if brands[0] in HEIC_BRANDS:
        return HEIC
    if brands[0] == b"crx ":
        return RAW
    if not AVIF_BRANDS.isdisjoint(brands):
        return AVIF
    # Any brand of HEVC images, but not one that only says "images are in here".
    if not (HEIC_BRANDS - {b"mif1", b"mif2", b"msf1"}).isdisjoint(brands):
        return HEIC
    return MP4


def _dicom(start: bytes) -> MediaFormat | None:
    return _other("DICOM image") if start[128:132] == b"DICM" else None


def _netpbm(start: bytes) -> MediaFormat | None:
    return _other("PNM image") if re.match(rb"P[1-7]\s", start) else None


def _text(start: bytes) -> MediaFormat | None:
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if _HTML_START.match(text):
        return HTML
    if text.startswith(b"<") and _SVG_ROOT.search(text):
        return SVG
    if text.startswith(b"<?xml"):
        return _other("XML text", "send the bytes of the file itself")
    if re.match(rb'\{\s*"|\[\s*[\[{"]', text):
        return JSON
    return None


_LOOKS: tuple[Callable[[bytes], MediaFormat | None], ...] = (_riff, _boxes, _dicom, _netpbm, _text)
