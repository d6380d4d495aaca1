"""Headers that do not tell the truth: the bytes count, unless the file was cut."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from modelmill.errors import ErrorCode
from modelmill_backends.shared.audio import open_audio
from modelmill_tasks.item_warnings import WarningCode
from tests.fixtures.sounds import RATE, encoded, speech, tone
from tests.support.exhaustive import exhaustive
from tests.support.sounds import opened, refusal

WAV = encoded(speech())
MP3 = encoded(speech(), RATE, "MP3")
BARE = MP3[MP3.index(MP3[:2], 4) :]
"""The MP3 without the frame that states its length."""
LIST = b"LIST" + struct.pack("<I", 26) + b"INFOISFT" + struct.pack("<I", 14) + b"Lavf58.29.100\0"


def stated(size: int, riff: int | None = None) -> bytes:
    """The WAV with another size in its header."""
    whole = size + 36 if riff is None else riff
    return WAV[:4] + struct.pack("<I", whole % 2**32) + WAV[8:40] + struct.pack("<I", size) + WAV[44:]


# WAV.


@pytest.mark.parametrize(
    "size",
    [
        0,
        2**32 - 1,
        2**31 - 1,
        2 * 10**9,
        10**9 - 36,
        exhaustive(2**32 - 37),
        exhaustive(0x7FFF_F000),
        exhaustive(2**30),
        exhaustive(10**8),
    ],
)
def test_a_placeholder_for_the_size_does_not_count(size: int) -> None:
    assert opened(stated(size))[1] == []
    assert np.array_equal(open_audio(stated(size), RATE), open_audio(WAV, RATE))


@pytest.mark.parametrize("riff", [0, 10, 2**32 - 1])
def test_the_size_of_the_whole_file_does_not_count(riff: int) -> None:
    assert np.array_equal(open_audio(stated(len(WAV) - 44, riff), RATE), open_audio(WAV, RATE))


@pytest.mark.parametrize("size", [1, 5000, len(WAV) - 43, len(WAV)])
def test_a_wrong_size_loses_no_sound(size: int) -> None:
    assert open_audio(stated(size), RATE).size == speech().size


@pytest.mark.parametrize("size", [10**6, 2 * len(WAV), 123_457, 650_000_123])
def test_a_size_that_a_recording_can_have_means_that_the_file_was_cut(size: int) -> None:
    error = refusal(stated(size))

    assert error.code == ErrorCode.INVALID_MEDIA
    assert (
        f"states {size} bytes of sound, and {len(WAV) - 44} are there" in error.message
        if size < 6e8
        else True
    )


def test_a_size_that_is_neither_likely_nor_round_is_told() -> None:
    samples, warnings = opened(stated(1_234_567_890))

    assert samples.size == speech().size
    assert warnings == [WarningCode.SOUND_CUT]


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_24", exhaustive("PCM_32"), "FLOAT", exhaustive("DOUBLE"), "ALAW", "ULAW"]
)
@pytest.mark.parametrize("kind", ["WAV", "WAVEX"])
def test_every_encoding_may_be_streamed_and_must_not_be_cut(kind: str, subtype: str) -> None:
    data = encoded(speech(), RATE, kind, subtype)
    at = data.index(b"data") + 4
    streamed = data[:at] + b"\xff" * 4 + data[at + 4 :]

    assert np.array_equal(open_audio(streamed, RATE), open_audio(data, RATE))
    assert refusal(data[: len(data) // 2]).code == ErrorCode.INVALID_MEDIA


@pytest.mark.parametrize("size", [0, 2**64 - 1, 2**63 - 1, 2 * 10**9])
def test_a_large_wav_may_be_streamed(size: int) -> None:
    data = encoded(speech(), RATE, "RF64", "PCM_16")
    at = data.index(b"data") + 4
    streamed = data[:28] + struct.pack("<Q", size) + data[36:at] + b"\xff" * 4 + data[at + 4 :]

    assert open_audio(streamed, RATE).size == speech().size


def test_chunks_around_the_sound_are_no_sound() -> None:
    before = WAV[:36] + LIST + WAV[36:]
    streamed = WAV[:36] + LIST + b"data\xff\xff\xff\xff" + WAV[44:]

    for data in (before, streamed, WAV + LIST, WAV + bytes(1000), WAV + b"TAG" + b"x" * 125):
        assert np.array_equal(open_audio(data, RATE), open_audio(WAV, RATE))


def test_a_wav_without_samples_is_empty_although_chunks_follow() -> None:
    empty = WAV[:40] + bytes(4)

    assert refusal(empty).message == "The audio is empty."
    assert refusal(empty + LIST).message == "The audio is empty."


def test_a_second_wav_in_the_same_file_is_told() -> None:
    samples, warnings = opened(WAV + WAV)

    assert samples.size == speech().size
    assert warnings == [WarningCode.SOUND_CUT]


# AIFF, CAF, AU, Ogg and FLAC.


@pytest.mark.parametrize("size", [0, 2**32 - 1, 2**31 - 1])
def test_an_au_that_was_streamed_is_read_to_its_end(size: int) -> None:
    data = encoded(speech(), RATE, "AU")

    assert open_audio(data[:8] + struct.pack(">I", size) + data[12:], RATE).size == speech().size


@pytest.mark.parametrize("kind", ["AIFF", "CAF", "AU", "OGG", "FLAC"])
def test_a_file_that_was_cut_is_refused(kind: str) -> None:
    data = encoded(speech(), RATE, kind)

    assert refusal(data[: len(data) * 2 // 3]).code == ErrorCode.INVALID_MEDIA


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_an_ogg_without_its_last_page_is_heard_with_a_warning(subtype: str) -> None:
    data = encoded(np.tile(speech(), 4), RATE, "OGG", subtype)

    samples, warnings = opened(data[: data.rfind(b"OggS")])

    assert samples.size > 0.7 * 4 * speech().size
    assert warnings == [WarningCode.SOUND_CUT]


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_of_two_oggs_in_one_file_both_are_heard(subtype: str) -> None:
    data = encoded(speech(), RATE, "OGG", subtype)

    samples, warnings = opened(data + data)

    assert samples.size == pytest.approx(2 * speech().size, rel=0.01)
    assert warnings == []


def test_a_flac_that_states_too_few_samples_is_read_to_its_end() -> None:
    data = encoded(speech(), RATE, "FLAC")
    head = int.from_bytes(data[18:26], "big") >> 36 << 36

    found = open_audio(data[:18] + (head | 10_000).to_bytes(8, "big") + data[26:], RATE)

    assert found.size == speech().size


# MP3.


def id3(size: int) -> bytes:
    """A tag whose content looks like frames."""
    digits = bytes(size >> shift & 0x7F for shift in (21, 14, 7, 0))
    return b"ID3\x04\0\0" + digits + (b"\xff\xfb\x90\x64" * (size // 4 + 1))[:size]


APE = b"APETAGEX" + struct.pack("<III", 2000, 100, 0xA000_0000) + bytes(8 + 2000)


@pytest.mark.parametrize(
    "before",
    [
        b"\0",
        bytes(1_000_000),
        id3(300_000),
        id3(100) + id3(2000) + bytes(5000),
        bytes(50) + id3(100),
        APE,
        b"HTTP/1.1 200 OK\r\n\r\n",
        np.random.default_rng(0).bytes(60_000),
    ],
    ids=["a zero", "zeros", "a long tag", "tags and zeros", "zeros and a tag", "APE", "text", "noise"],
)
@pytest.mark.parametrize("data", [MP3, BARE], ids=["stated", "bare"])
def test_what_stands_before_an_mp3_is_skipped(before: bytes, data: bytes) -> None:
    assert np.array_equal(open_audio(before + data, RATE), open_audio(data, RATE))


def test_an_mp3_is_searched_within_bounds() -> None:
    assert refusal(np.random.default_rng(0).bytes(200_000) + MP3).code == ErrorCode.INVALID_MEDIA


@pytest.mark.parametrize(
    "behind",
    [
        b"TAG" + bytes(125),
        b"x" * 20_000 + b"APETAGEX" + struct.pack("<IIIIQ", 2000, 20_032, 1, 0, 0),
        bytes(30_000),
    ],
)
def test_what_stands_behind_an_mp3_is_skipped(behind: bytes) -> None:
    assert open_audio(MP3 + behind, RATE).size == speech().size


@pytest.mark.parametrize("count", [0, 10])
def test_an_mp3_that_states_too_few_frames_is_read_to_its_end(count: int) -> None:
    at = max(MP3.find(b"Xing"), MP3.find(b"Info")) + 8

    found = open_audio(MP3[:at] + struct.pack(">I", count) + MP3[at + 4 :], RATE)

    assert found.size == pytest.approx(speech().size, abs=RATE // 10)


def test_an_mp3_that_was_cut_is_refused_or_told() -> None:
    assert refusal(MP3[: len(MP3) // 2]).code == ErrorCode.INVALID_MEDIA
    assert opened(BARE[: len(BARE) // 2 + 1])[1] == [WarningCode.SOUND_CUT]
    assert opened(BARE)[1] == []


def test_random_bytes_are_no_sound() -> None:
    noise = np.random.default_rng(1)

    for _ in range(50):
        assert refusal(noise.bytes(20_000)).code == ErrorCode.INVALID_MEDIA


@pytest.mark.parametrize("kind", ["WAV", "AIFF", "CAF", "AU", "FLAC", "OGG", "MP3"])
def test_a_header_that_ends_anywhere_is_refused(kind: str) -> None:
    data = encoded(tone(0.05), RATE, kind)

    for end in range(0, min(len(data) * 2 // 3, 120), 7):
        assert refusal(data[: end + 1]).code == ErrorCode.INVALID_MEDIA
