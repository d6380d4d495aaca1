"""The formats of sound files, by their first bytes.

Video files count as sound, because their sound track can be heard.
"""

from __future__ import annotations

from enum import StrEnum
from typing import BinaryIO

from modelmill.formats.frames import after_tags, first_frame
from modelmill.formats.media import AVIF_BRANDS, HEIC_BRANDS
from modelmill.formats.window import Window

HEAD = 512
"""Bytes that a signature may need."""


class SoundFormat(StrEnum):
    """The formats that are taken, by the names that messages use."""

    WAV = "WAV"
    FLAC = "FLAC"
    OGG = "Ogg"
    MP3 = "MP3"
    AAC = "AAC"
    MP4 = "MP4"
    MATROSKA = "Matroska"
    AMR = "AMR"
    AIFF = "AIFF"
    CAF = "CAF"
    AU = "AU"


SHOWN_FORMATS = "WAV, FLAC, Ogg, MP3, AAC, M4A, MP4, MOV, 3GP, WebM, Matroska, AMR, AIFF, CAF, AU"
"""The formats for messages, by the names that users know."""

STARTS = (
    (b"fLaC", SoundFormat.FLAC),
    (b"OggS", SoundFormat.OGG),
    (b"\x1a\x45\xdf\xa3", SoundFormat.MATROSKA),
    (b"#!AMR", SoundFormat.AMR),
    (b"caff", SoundFormat.CAF),
    (b".snd", SoundFormat.AU),
    (b"dns.", SoundFormat.AU),
)
BOXES = (b"ftyp", b"moov", b"mdat", b"wide", b"styp")
"""Names of the box that an MP4, a QuickTime film or a piece of one begins with."""

OTHERS = (
    (b"MThd", "a MIDI file, which holds notes and no sound"),
    (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", "a WMA, WMV or ASF file"),
    (b"FLV", "a Flash video"),
    (b".RMF", "a RealMedia file"),
    (b"MAC ", "a Monkey's Audio file"),
    (b"wvpk", "a WavPack file"),
    (b"MPCK", "a Musepack file"),
    (b"MP+", "a Musepack file"),
    (b"TTA1", "a TTA file"),
    (b"DSD ", "a DSD file"),
    (b"FRM8", "a DSD file"),
    (b"riff\x2e\x91\xcf\x11", "a Wave64 file"),
    (b"Creative Voice File", "a VOC file"),
    (b"ADIF", "an AAC file with an ADIF header"),
    (b"\x0b\x77", "an AC-3 file"),
    (b"\x7f\xfe\x80\x01", "a DTS file"),
    (b"\x00\x00\x01\xba", "an MPEG program stream"),
    (b"#EXTM3U", "a playlist, which names sounds and holds none"),
    (b"[playlist]", "a playlist, which names sounds and holds none"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"\x89PNG", "a PNG picture"),
    (b"GIF8", "a GIF picture"),
    (b"BM", "a BMP picture"),
    (b"II*\0", "a TIFF picture"),
    (b"MM\0*", "a TIFF picture"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a ZIP archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"{\\rtf", "an RTF document"),
)
"""First bytes of other files, and what these are."""
RIFFS = {b"AVI ": "an AVI file", b"WEBP": "a WebP picture", b"RMID": "a MIDI file", b"sfbk": "a SoundFont"}


def sound_format(file: BinaryIO) -> SoundFormat | None:
    """The format, by content; None if it is none of those that are taken."""
    window = Window(file)
    head = window.at(0, HEAD)
    if (found := _by_signature(head)) is not None:
        return found
    if _other(head) or head[:1] in (b"{", b"<"):
        return None
    if window.at(after_tags(window), 4) == b"fLaC":
        return SoundFormat.FLAC
    first = first_frame(window)
    return None if first is None else SoundFormat(first[1].kind)


def other_format(file: BinaryIO) -> str | None:
    """What the file is instead of a sound: "a MIDI file"; None if that is not known."""
    return _other(Window(file).at(0, HEAD))


def is_picture_box(head: bytes) -> bool:
    """Whether the file is a HEIC or AVIF picture, which begins as an MP4 does."""
    return head[4:8] == b"ftyp" and head[8:12] in AVIF_BRANDS | HEIC_BRANDS


def _by_signature(head: bytes) -> SoundFormat | None:
    for start, found in STARTS:
        if head.startswith(start):
            return found
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"BW64") and head[8:12] == b"WAVE":
        return SoundFormat.WAV
    if head[:4] == b"FORM" and head[8:12] in (b"AIFF", b"AIFC"):
        return SoundFormat.AIFF
    if head[4:8] in BOXES and not is_picture_box(head):
        return SoundFormat.MP4
    return None


def _other(head: bytes) -> str | None:
    if head[:4] == b"RIFF":
        return RIFFS.get(head[8:12])
    if is_picture_box(head):
        return "a HEIC or AVIF picture"
    if len(head) > 376 and head[0] == head[188] == head[376] == 0x47:
        return "an MPEG transport stream"
    # A letter more or less decides nothing with two bytes, so these need the reserved zeros as well.
    if head[:2] == b"BM" and head[6:10] != bytes(4):
        return None
    return next((what for start, what in OTHERS if head.startswith(start)), None)
