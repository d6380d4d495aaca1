"""Sound in containers: of browsers, phones and videos."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
import pytest

from modelmill.errors import ErrorCode
from modelmill.settings import get_settings
from modelmill_backends.shared.audio import open_audio
from modelmill_tasks.item_warnings import WarningCode
from tests.fixtures.containers import box, contained, crafted_matroska, crafted_mp4, table
from tests.fixtures.sounds import RATE, encoded, speech, tone
from tests.support.sounds import opened, refusal


def likeness(found: Any, wanted: Any) -> float:
    """The correlation at the best shift."""
    size = 2 ** (found.size + wanted.size).bit_length()
    products = np.fft.irfft(np.fft.rfft(found, size) * np.conj(np.fft.rfft(wanted, size)), size)
    return float(products.max() / np.linalg.norm(found) / np.linalg.norm(wanted))


@pytest.mark.parametrize(
    ("form", "codec", "rate", "extra"),
    [
        ("webm", "libopus", 48_000, {}),
        ("webm", "libopus", 48_000, {"options": {"live": "1"}}),
        ("matroska", "flac", 16_000, {"video": True}),
        ("ipod", "aac", 44_100, {}),
        ("ipod", "alac", 16_000, {}),
        ("mp4", "aac", 44_100, {"video": True}),
        ("mp4", "libopus", 48_000, {"options": {"movflags": "frag_keyframe+empty_moov"}, "video": True}),
        ("mov", "pcm_s16le", 16_000, {}),
        ("adts", "aac", 16_000, {}),
        ("ogg", "flac", 16_000, {}),
        ("wav", "libmp3lame", 16_000, {}),
    ],
)
def test_the_sound_is_that_which_was_recorded(form: str, codec: str, rate: int, extra: Any) -> None:
    found, warnings = opened(contained(form, codec, rate=rate, **extra))

    assert warnings == []
    assert found.size == pytest.approx(speech().size, abs=0.15 * RATE)
    assert likeness(found, speech()) > 0.95


@pytest.mark.parametrize(("form", "codec"), [("3gp", "libopencore_amrnb"), ("amr", "libopencore_amrnb")])
def test_calls_of_phones_are_heard(form: str, codec: str) -> None:
    found, _ = opened(contained(form, codec, tone(1.0), rate=8000))

    spectrum = np.abs(np.fft.rfft(found[: RATE // 2]))
    assert found.size == pytest.approx(RATE, abs=RATE // 20)
    assert int(spectrum.argmax()) * 2 == pytest.approx(440, abs=4)


@pytest.mark.parametrize(
    ("form", "codec", "rate"),
    [("webm", "libopus", 48_000), ("ipod", "aac", 44_100), ("mov", "pcm_s16le", 16_000)],
)
def test_what_an_encoder_puts_before_the_sound_is_left_out(form: str, codec: str, rate: int) -> None:
    click = np.zeros(RATE, np.float32)
    click[4000:4020] = 0.5

    found, _ = opened(contained(form, codec, click, rate=rate))

    assert int(np.abs(found).argmax()) == pytest.approx(4010, abs=32)


@pytest.mark.parametrize("kind", ["AIFF", "CAF", "AU"])
def test_uncompressed_formats_are_exact(kind: str) -> None:
    found, warnings = opened(encoded(speech(), RATE, kind, "PCM_16"))

    assert warnings == []
    assert np.array_equal(found, open_audio(encoded(speech(), RATE, "WAV", "PCM_16"), RATE))


def test_zeros_and_tags_before_aac_are_skipped() -> None:
    data = contained("adts", "aac")
    whole = open_audio(data, RATE)

    for before in (bytes(5000), b"ID3\x04\0\0\0\0\x01\0" + bytes(128), b"junk" * 1000):
        assert np.array_equal(open_audio(before + data, RATE), whole)


@pytest.mark.parametrize(("form", "codec"), [("matroska", "mpeg4"), ("mp4", "mpeg4")])
def test_a_video_without_sound_says_so(form: str, codec: str) -> None:
    error = refusal(contained(form, codec, video=True, sound=False))

    assert (error.code, error.message) == (ErrorCode.INVALID_MEDIA, "The video has no sound.")


def test_of_several_tracks_the_first_is_heard_with_a_warning() -> None:
    found, warnings = opened(contained("matroska", "flac", tracks=3))

    assert warnings == [WarningCode.SOUND_CUT]
    assert likeness(found, speech()) > 0.99


@pytest.mark.parametrize(
    ("form", "codec", "rate"),
    [("webm", "libopus", 48_000), ("ipod", "aac", 44_100), ("matroska", "flac", 16_000)],
)
def test_a_container_that_was_cut_is_refused(form: str, codec: str, rate: int) -> None:
    data = contained(form, codec, rate=rate)

    assert refusal(data[: len(data) * 2 // 3]).code == ErrorCode.INVALID_MEDIA


@pytest.mark.parametrize(
    "data",
    [
        contained("webm", "libopus", rate=48_000, options={"live": "1"}),
        contained("adts", "aac"),
        contained("amr", "libopencore_amrnb", rate=8000),
    ],
    ids=["webm", "aac", "amr"],
)
def test_a_stream_that_ends_within_a_packet_is_heard_with_a_warning(data: bytes) -> None:
    found, warnings = opened(data[: len(data) * 2 // 3 - 5])

    assert 0.5 * speech().size < found.size < 0.8 * speech().size
    assert warnings == [WarningCode.SOUND_CUT]


def test_a_damaged_packet_is_left_out_with_a_warning() -> None:
    data = bytearray(contained("matroska", "aac", np.tile(speech(), 4)))
    middle = len(data) // 2
    data[middle : middle + 100] = b"\xff" * 100

    found, warnings = opened(bytes(data))

    assert warnings == [WarningCode.SOUND_CUT]
    assert found.size > 0.9 * 4 * speech().size


@pytest.mark.parametrize(
    "tables",
    [
        # 80 million samples, which FFmpeg would list in 2.8 GB.
        [
            table(b"stsz", 1, 80_000_000),
            table(b"stsc", 1, 1, 80_000_000, 1),
            table(b"stts", 1, 80_000_000, 2),
        ],
        [table(b"stsz", 2, 2**31 - 1), table(b"stsc", 1, 1, 2**31 - 1, 1), table(b"stts", 1, 2**31 - 1, 1)],
        [table(b"stsz", 2, 500), table(b"stsc", 1, 1, 500, 1), table(b"stts", 2, 2**31, 1, 2**31, 1)],
        [table(b"stsz", 2, 500), box(b"wave", table(b"stsz", 1, 80_000_000))],
        [box(b"cmov", b"compressed")],
    ],
    ids=["samples", "chunks", "times", "hidden", "compressed"],
)
def test_an_index_that_claims_too_much_is_refused_before_it_is_decoded(tables: list[bytes]) -> None:
    assert refusal(crafted_mp4(*tables, table(b"stco", 1, 28))).code == ErrorCode.MEDIA_TOO_LARGE


def test_many_edits_of_many_samples_are_refused() -> None:
    tables = [table(b"stsz", 1, 10**6), table(b"stsc", 1, 1, 10**6, 1), table(b"stts", 1, 10**6, 2)]
    edits = box(b"edts", table(b"elst", 400, *[10**6, 0, 0x10000] * 400))

    assert refusal(crafted_mp4(*tables, table(b"stco", 1, 28), edits=edits)).code == ErrorCode.MEDIA_TOO_LARGE


def test_an_index_of_the_same_form_is_heard() -> None:
    tables = [table(b"stsz", 2, 500), table(b"stsc", 1, 1, 500, 1), table(b"stts", 1, 500, 1)]

    assert open_audio(crafted_mp4(*tables, table(b"stco", 1, 28)), RATE).size == 500


def test_packets_that_are_compressed_once_more_are_bounded() -> None:
    block = zlib.compress(bytes(2_000_000), 9)
    data = crafted_matroska([block] * 20, zipped=True)

    assert len(data) < 100_000
    assert refusal(data).code == ErrorCode.MEDIA_TOO_LARGE
    assert open_audio(crafted_matroska([zlib.compress(bytes(3200))] * 3, zipped=True), RATE).size == 4800


def test_packets_of_next_to_nothing_are_bounded() -> None:
    assert refusal(crafted_matroska([bytes(2)] * 30_000)).code == ErrorCode.MEDIA_TOO_LARGE


def test_too_many_channels_are_refused() -> None:
    assert refusal(crafted_matroska([bytes(66)], channels=33)).code == ErrorCode.MEDIA_TOO_LARGE


@pytest.mark.parametrize("form", ["webm", "adts"])
def test_a_length_that_no_header_states_is_bounded_while_it_is_decoded(
    form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELMILL_MAX_AUDIO_S", "2")
    get_settings.cache_clear()
    try:
        if form == "webm":
            data = contained("webm", "libopus", rate=48_000, options={"live": "1"})
        else:
            data = contained("adts", "aac")
        assert refusal(data).code == ErrorCode.MEDIA_TOO_LARGE
    finally:
        get_settings.cache_clear()


def test_pictures_of_a_video_are_never_decoded(capfd: pytest.CaptureFixture[str]) -> None:
    data = contained("matroska", "flac", video=True)
    # Pictures that no decoder could make sense of do not matter, and FFmpeg says nothing.
    start = data.index(b"\xa3", data.index(b"\x1f\x43\xb6\x75"))
    broken = data[: start + 12] + b"\xff" * 20 + data[start + 32 :]

    assert np.array_equal(open_audio(broken, RATE), open_audio(data, RATE))
    assert capfd.readouterr() == ("", "")


def test_what_no_sound_decoder_reads_is_told_by_its_name() -> None:
    assert refusal(b"MThd" + bytes(30)).message.startswith(
        "This is a MIDI file, which holds notes and no sound; "
    )
    assert refusal(b"#EXTM3U\nhttp://example.org/a.ts\n").message.startswith("This is a playlist")
