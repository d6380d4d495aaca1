"""Decoding of audio."""

from __future__ import annotations

import numpy as np
import pytest

from modelmill.errors import ErrorCode, MediaError
from modelmill.settings import get_settings
from modelmill_backends.shared.audio import open_audio, pieces
from tests.fixtures.sounds import RATE, encoded, sound_url, speech, tone


def flac_of_unknown_length(data: bytes) -> bytes:
    """A FLAC from a program that cannot go back to the header: STREAMINFO's number of samples is 0."""
    head = int.from_bytes(data[18:26], "big") >> 36 << 36
    return data[:18] + head.to_bytes(8, "big") + data[26:]


def refusal(data: bytes) -> ErrorCode:
    with pytest.raises(MediaError) as raised:
        open_audio(data, RATE)
    return raised.value.code


@pytest.mark.parametrize(
    ("subtype", "step"),
    [("PCM_U8", 2**-7), ("PCM_16", 2**-15), ("PCM_24", 2**-23), ("PCM_32", 1e-7), ("FLOAT", 0.0)],
)
def test_samples_are_as_exact_as_their_format(subtype: str, step: float) -> None:
    found = open_audio(encoded(tone(0.5), RATE, "WAV", subtype), RATE)

    assert found.dtype == np.float32
    assert np.abs(found - tone(0.5)).max() <= step


@pytest.mark.parametrize(("kind", "subtype"), [("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_lossy_formats_keep_the_sound(kind: str, subtype: str | None) -> None:
    found = open_audio(encoded(speech(), RATE, kind, subtype), RATE)

    assert found.size == pytest.approx(speech().size, rel=0.02)
    # An encoder may shift the sound by some milliseconds.
    one, other = (np.abs(np.fft.rfft(samples, 2**16))[:8000].astype(float) for samples in (found, speech()))
    assert np.corrcoef(one, other)[0, 1] > 0.97


def test_an_mp3_of_many_blocks_has_no_seams() -> None:
    long = tone(20)

    found = open_audio(encoded(long, RATE, "MP3"), RATE)

    assert found.size == long.size
    inside = found[RATE:-RATE]
    assert np.abs(np.diff(inside)).max() < 1.1 * np.abs(np.diff(long)).max()


@pytest.mark.parametrize("rate", [8000, 22_050, 44_100, 48_000, 96_000])
def test_other_rates_become_the_models(rate: int) -> None:
    found = open_audio(encoded(tone(5, rate), rate), RATE)

    assert found.size == pytest.approx(5 * RATE, abs=2)
    inside = slice(RATE, 4 * RATE)
    assert np.abs(found[inside] - tone(5)[inside]).max() < 1e-3


def test_a_data_url_is_as_good_as_bytes() -> None:
    assert np.array_equal(open_audio(sound_url(tone(0.2)), RATE), open_audio(encoded(tone(0.2)), RATE))


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3"])
def test_a_truncated_file_is_refused(kind: str) -> None:
    data = encoded(speech(), RATE, kind)

    assert refusal(data[: len(data) * 2 // 3]) == ErrorCode.INVALID_MEDIA


@pytest.mark.parametrize("rate", [16_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("tagged", [False, True])
def test_an_mp3_that_does_not_tell_its_length_is_read_to_its_end(
    rate: int, channels: int, tagged: bool
) -> None:
    samples = np.stack([np.concatenate([np.zeros(rate, np.float32), tone(8, rate)])] * channels, axis=1)
    data = encoded(samples, rate, "MP3")
    # The first frame, which states the length, ends where the next frame begins.
    bare = data[data.index(data[:2], 4) :]
    assert b"Xing" not in bare
    assert b"Info" not in bare
    id3 = b"ID3\x04\0\0\0\0\x01\0" + bytes(128) if tagged else b""

    found = open_audio(id3 + bare, RATE)

    assert found.size == pytest.approx(9 * RATE, rel=0.02)
    assert np.abs(found[-RATE:-4000]).max() > 0.4


def test_of_two_mp3s_in_one_file_both_are_heard() -> None:
    data = encoded(tone(20), RATE, "MP3")

    assert open_audio(data + data, RATE).size == pytest.approx(40 * RATE, rel=0.01)


def test_a_flac_that_was_streamed_is_read_to_its_end() -> None:
    data = flac_of_unknown_length(encoded(speech(), RATE, "FLAC"))

    assert open_audio(data, RATE).size == speech().size


def test_what_does_not_tell_its_length_is_bounded_while_it_is_decoded() -> None:
    limit_s = get_settings().max_audio_s
    # A FLAC of half an hour and one second of silence has a few kilobytes.
    data = encoded(np.zeros(int((limit_s + 1) * 4000), np.int16), 4000, "FLAC")

    assert refusal(flac_of_unknown_length(data)) == ErrorCode.MEDIA_TOO_LARGE


def test_a_header_that_claims_more_than_there_is_is_refused() -> None:
    data = bytearray(encoded(tone(0.5)))
    data[40:44] = (10**6).to_bytes(4, "little")

    assert refusal(bytes(data)) == ErrorCode.INVALID_MEDIA


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_what_is_no_number_is_refused(value: float) -> None:
    assert refusal(encoded(np.full(1000, value, np.float32), RATE, "WAV", "FLOAT")) == ErrorCode.INVALID_MEDIA


def test_floats_of_another_scale_keep_their_shape() -> None:
    found = open_audio(encoded(tone(0.1) * 32_768, RATE, "WAV", "FLOAT"), RATE)

    assert np.abs(found).max() == 1.0
    assert np.allclose(found, tone(0.1) / np.abs(tone(0.1)).max(), atol=1e-5)


def test_floats_a_little_beyond_full_scale_are_clipped() -> None:
    loud = tone(0.1) * 2.2

    assert np.array_equal(open_audio(encoded(loud, RATE, "WAV", "FLOAT"), RATE), np.clip(loud, -1, 1))


def test_no_samples_are_no_audio() -> None:
    assert refusal(encoded(np.zeros(0, np.float32))) == ErrorCode.INVALID_MEDIA


def test_a_short_recording_is_one_piece() -> None:
    ((start, found),) = pieces(speech(), RATE, 10)

    assert start == 0
    assert found is speech() or np.array_equal(found, speech())


def test_a_long_recording_is_cut_where_it_is_quiet() -> None:
    samples = np.concatenate([tone(8.0), np.zeros(RATE // 2, np.float32), tone(9.5)])

    found = pieces(samples, RATE, 10)

    assert np.array_equal(np.concatenate([part for _, part in found]), samples)
    assert all(part.size <= 10 * RATE for _, part in found)
    assert 8 * RATE <= found[1][0] <= 8.5 * RATE
    assert [start for start, _ in found] == [0, *np.cumsum([part.size for _, part in found])[:-1]]


def test_no_piece_is_a_fragment() -> None:
    for seconds in (10.01, 10.5, 19.99, 20.01, 31.7):
        assert min(part.size for _, part in pieces(tone(seconds), RATE, 10)) >= 2 * RATE
