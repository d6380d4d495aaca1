from __future__ import annotations

import io
import json
import struct
from typing import Any

import numpy as np
import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import get_settings
from modelmill_tasks.limits import process_limits
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.examples import CAT, SPEECH
from modelmill_tasks.shared.sniffing import sniff, unfit
from tests.fixtures.containers import contained
from tests.fixtures.sounds import RATE, as_url, encoded, sound_url, speech, tone

LISTENING = ["automatic-speech-recognition", "audio-classification"]
LIMIT_S = get_settings().max_audio_s


def refusal(task: str, body: dict[str, Any], *, batched: bool = False) -> tuple[ErrorCode, list[str]]:
    """The error's code, and the fields that it names."""
    with pytest.raises(ModelmillError) as raised:
        find_task(task).parse(json.dumps(body), batched=batched)
    return raised.value.code, [each.field for each in raised.value.fields]


@pytest.mark.parametrize("task", [*LISTENING, "text-to-speech"])
def test_the_examples_keep_their_contract(task: str) -> None:
    contract = find_task(task)

    contract.parse(json.dumps(contract.example.input))
    contract.output.model_validate(contract.example.output)


@pytest.mark.parametrize("task", LISTENING)
@pytest.mark.parametrize(
    ("audio", "code"),
    [
        ("", ErrorCode.INVALID_MEDIA),
        ("not base64 at all!", ErrorCode.INVALID_MEDIA),
        (as_url(b"neither sound nor picture, only words"), ErrorCode.INVALID_MEDIA),
        (CAT, ErrorCode.INVALID_MEDIA),
        (as_url(encoded(tone(0.1), kind="W64")), ErrorCode.INVALID_MEDIA),
        (sound_url(np.zeros(0, np.float32)), ErrorCode.INVALID_MEDIA),
        (sound_url(tone(0.1, 500), 500), ErrorCode.INVALID_MEDIA),
        (sound_url(np.zeros((100, 64), np.float32)), ErrorCode.MEDIA_TOO_LARGE),
        (
            sound_url(np.zeros(int((LIMIT_S + 1) * 1000), np.int16), 1000, "FLAC", "PCM_16"),
            ErrorCode.MEDIA_TOO_LARGE,
        ),
        ("https://example.org/speech.wav", ErrorCode.MEDIA_SOURCE_REFUSED),
    ],
    ids=[
        "nothing",
        "no base64",
        "text",
        "a photo",
        "Wave64",
        "no samples",
        "500 Hz",
        "64 channels",
        "too long",
        "a URL",
    ],
)
def test_what_is_no_audio_is_refused_with_its_code(task: str, audio: str, code: ErrorCode) -> None:
    assert refusal(task, {"audio": audio}) == (code, ["audio"])


@pytest.mark.parametrize("task", LISTENING)
def test_a_batch_names_the_recording_that_is_none(task: str) -> None:
    code, fields = refusal(task, {"audio": [SPEECH, CAT]}, batched=True)

    assert (code, fields) == (ErrorCode.INVALID_MEDIA, ["audio.1"])


def test_a_header_that_claims_too_much_is_refused_before_anything_is_decoded() -> None:
    data = bytearray(encoded(tone(1), kind="FLAC"))
    # STREAMINFO: the last 36 of these 64 bits are the number of samples.
    data[18:26] = (int.from_bytes(data[18:26], "big") | 0xF_FFFF_FFFF).to_bytes(8, "big")

    assert refusal(LISTENING[0], {"audio": as_url(bytes(data))}) == (ErrorCode.MEDIA_TOO_LARGE, ["audio"])


def test_many_channels_at_a_high_rate_shorten_what_is_accepted() -> None:
    data = bytearray(encoded(np.zeros((1000, 8), np.int16), 96_000, "FLAC"))
    frames = int(LIMIT_S * 96_000 / 2)
    head = int.from_bytes(data[18:26], "big") >> 36 << 36
    data[18:26] = (head | frames).to_bytes(8, "big")

    assert refusal(LISTENING[0], {"audio": as_url(bytes(data))}) == (ErrorCode.MEDIA_TOO_LARGE, ["audio"])


@pytest.mark.parametrize(
    ("kind", "subtype"),
    [
        *(
            ("WAV", subtype)
            for subtype in ("PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW")
        ),
        ("WAVEX", "PCM_24"),
        ("FLAC", "PCM_16"),
        ("OGG", "VORBIS"),
        ("OGG", "OPUS"),
        ("MP3", "MPEG_LAYER_III"),
        ("AIFF", "PCM_16"),
        ("CAF", "PCM_16"),
        ("AU", "ULAW"),
    ],
)
def test_the_formats_are_accepted(kind: str, subtype: str) -> None:
    body = {"audio": sound_url(speech(), RATE, kind, subtype)}

    for task in LISTENING:
        find_task(task).parse(json.dumps(body))


@pytest.mark.parametrize(
    ("form", "codec", "media_type"),
    [
        ("webm", "libopus", "audio/webm"),
        ("matroska", "flac", "audio/x-matroska"),
        ("ipod", "aac", "audio/mp4"),
        ("adts", "aac", "audio/aac"),
        ("3gp", "libopencore_amrnb", "audio/mp4"),
        ("amr", "libopencore_amrnb", "audio/amr"),
    ],
)
def test_what_browsers_and_phones_record_is_accepted_by_its_header(
    form: str, codec: str, media_type: str
) -> None:
    rate = {"libopus": 48_000, "libopencore_amrnb": 8000}.get(codec, RATE)
    data = contained(form, codec, tone(0.3), rate=rate)

    find_task(LISTENING[0]).parse(json.dumps({"audio": as_url(data)}))

    assert sniff(io.BytesIO(data), process_limits()) == (media_type, None)


@pytest.mark.parametrize(
    ("form", "media_type"),
    [("matroska", "video/x-matroska"), ("mp4", "video/mp4"), ("mov", "video/quicktime")],
)
def test_a_video_is_accepted_for_its_sound_only(form: str, media_type: str) -> None:
    data = contained(form, "aac", tone(0.3), video=True)
    mute = contained(form, "aac", video=True, sound=False)

    assert sniff(io.BytesIO(data), process_limits()) == (media_type, None)
    assert unfit(media_type, "audio") is None
    assert unfit(media_type, "image") is not None
    assert refusal(LISTENING[0], {"audio": as_url(mute)}) == (ErrorCode.INVALID_MEDIA, ["audio"])


@pytest.mark.parametrize("form", ["matroska", "ipod"])
def test_a_container_that_states_too_long_a_sound_is_refused_by_its_header(form: str) -> None:
    data = contained(form, "flac" if form == "matroska" else "alac", tone(0.3))
    if form == "matroska":
        # Duration is a double, in milliseconds.
        at = data.index(b"\x44\x89\x88") + 3
        data = data[:at] + struct.pack(">d", (LIMIT_S + 1) * 1000) + data[at + 8 :]
    else:
        at = data.index(b"mvhd") + 20
        data = data[:at] + struct.pack(">I", int(LIMIT_S + 1) * 1000) + data[at + 4 :]

    assert refusal(LISTENING[0], {"audio": as_url(data)}) == (ErrorCode.MEDIA_TOO_LARGE, ["audio"])


@pytest.mark.parametrize(
    ("config", "field"),
    [
        ({"return_timestamps": "sentence"}, "config.return_timestamps"),
        ({"return_timestamps": 1}, "config.return_timestamps"),
        ({"translate": "yes"}, "config.translate"),
        ({"language": ""}, "config.language"),
        ({"chunk_length_s": 30}, "config.chunk_length_s"),
    ],
)
def test_a_wrong_wish_is_named(config: dict[str, Any], field: str) -> None:
    code, fields = refusal(LISTENING[0], {"audio": SPEECH, "config": config})

    assert code == ErrorCode.INVALID_INPUT
    assert all(each.startswith(field) for each in fields)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "text"),
        ({"text": ""}, "text"),
        ({"text": "a" * 2001}, "text"),
        ({"text": "hello", "config": {"speaker": -1}}, "config.speaker"),
        ({"text": "hello", "config": {"seed": -1}}, "config.seed"),
        ({"text": "hello", "config": {"voice": "anna"}}, "config.voice"),
    ],
)
def test_a_wrong_text_or_voice_is_named(body: dict[str, Any], field: str) -> None:
    assert refusal("text-to-speech", body) == (ErrorCode.INVALID_INPUT, [field])


def test_the_number_of_classes_has_bounds() -> None:
    body = {"audio": SPEECH, "config": {"top_k": 0}}

    assert refusal("audio-classification", body) == (ErrorCode.INVALID_INPUT, ["config.top_k"])
