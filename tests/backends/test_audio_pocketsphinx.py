"""PocketSphinx, with its real weights on real speech."""

from __future__ import annotations

import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pytest

from modelmill.errors import ErrorCode
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.item_warnings import InputWarning, WarningCode
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.examples import SPEECH
from tests.fixtures.containers import contained
from tests.fixtures.listening import TASK, Watched, heard, refusal, watched
from tests.fixtures.sounds import RATE, as_url, sound_url, speech
from tests.support.exhaustive import exhaustive
from tests.support.models import OpenModel

SAID = "go forward ten meters"


@pytest.fixture
def sphinx(open_model: OpenModel) -> LoadedModel:
    return open_model("pocketsphinx-en")


@pytest.mark.parametrize(
    ("kind", "rate", "channels"),
    [
        ("WAV", 16_000, 1),
        exhaustive("FLAC", 44_100, 2),
        exhaustive("OGG", 48_000, 1),
        ("MP3", 44_100, 2),
        ("WAV", 8000, 1),
    ],
)
def test_real_speech_is_understood_in_any_form(
    sphinx: LoadedModel, kind: str, rate: int, channels: int
) -> None:
    import soxr

    samples = soxr.resample(speech(), RATE, rate)
    audio = sound_url(np.stack([samples] * channels, axis=1), rate, kind)

    found = heard(sphinx, audio)["text"]

    if rate == 8000:
        # The recording lacks the upper half of the spectrum, which the model was trained with.
        assert found.startswith("go forward")
    else:
        assert found == SAID


@pytest.mark.parametrize(
    "data",
    [
        contained("webm", "libopus", rate=48_000),
        contained("ipod", "aac", rate=44_100),
        contained("mp4", "aac", rate=48_000, video=True),
    ],
    ids=["WebM", "M4A", "a video"],
)
def test_recordings_of_browsers_and_phones_are_understood(sphinx: LoadedModel, data: bytes) -> None:
    assert heard(sphinx, as_url(data))["text"] == SAID


@pytest.mark.parametrize(
    "channels",
    [
        (speech(), -speech()),
        exhaustive((speech() + 0.1, 0.1 - speech())),
        (speech() * 0, speech() * 0, speech()),
    ],
)
def test_a_channel_that_holds_speech_is_heard(sphinx: LoadedModel, channels: Any) -> None:
    assert heard(sphinx, np.stack(channels, axis=1))["text"] == SAID


def test_another_scale_or_a_constant_does_not_change_the_words(sphinx: LoadedModel) -> None:
    for samples in (speech() * 32_768, speech() + 0.3):
        assert heard(sphinx, sound_url(samples, RATE, "WAV", "FLOAT"))["text"] == SAID


def test_a_constant_says_nothing(sphinx: LoadedModel) -> None:
    assert heard(sphinx, np.full(RATE, 0.3, np.float32))["text"] == ""


def test_a_recording_that_is_taken_for_silence_is_told(sphinx: LoadedModel) -> None:
    codes = []
    for samples in (speech(), speech() * 0, speech() * 0.002):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            heard(sphinx, sound_url(samples, RATE, "WAV", "FLOAT"))
        codes.append([each.message.code for each in found if isinstance(each.message, InputWarning)])

    assert codes == [[], [], [WarningCode.SOUND_CUT]]


def test_the_example_is_what_it_answers(sphinx: LoadedModel) -> None:
    example = find_task(TASK).example

    (output,) = sphinx.answer(TASK, example.input)

    assert output.model_dump() == example.output


def test_true_gives_what_stands_between_pauses(sphinx: LoadedModel) -> None:
    twice = np.concatenate([speech(), speech()])

    chunks = heard(sphinx, twice, return_timestamps=True)["chunks"]

    assert [chunk["text"] for chunk in chunks] == [SAID, SAID]
    assert chunks[0]["start"] == pytest.approx(0.46, abs=0.1)
    assert chunks[1]["start"] == pytest.approx(0.46 + speech().size / RATE, abs=0.1)


def test_a_recording_of_many_pieces_keeps_its_times(sphinx: LoadedModel) -> None:
    found = heard(sphinx, np.tile(speech(), 3), return_timestamps="word")

    starts = [chunk["start"] for chunk in found["chunks"] if chunk["text"] == "forward"]
    length_s = speech().size / RATE
    assert starts == pytest.approx([0.64 + index * length_s for index in range(3)], abs=0.15)


@pytest.mark.parametrize("audio", [np.zeros(RATE, np.float32), np.zeros(50, np.float32)])
def test_silence_says_nothing(sphinx: LoadedModel, audio: Any) -> None:
    assert heard(sphinx, audio, return_timestamps="word") == {"text": "", "chunks": []}


def test_what_was_heard_before_leaves_no_trace(sphinx: LoadedModel) -> None:
    before = heard(sphinx, SPEECH, return_timestamps="word")
    heard(sphinx, np.random.default_rng(0).normal(0, 0.3, RATE).astype(np.float32))
    heard(sphinx, speech() * 0.1)

    assert heard(sphinx, SPEECH, return_timestamps="word") == before


def test_english_only_says_so(sphinx: LoadedModel) -> None:
    assert heard(sphinx, SPEECH, language="English")["text"] == SAID
    code, message, fields = refusal(sphinx, language="de")
    assert (code, fields) == (ErrorCode.INVALID_INPUT, ["config.language"])
    assert message.endswith("it knows: en")
    assert refusal(sphinx, translate=True)[2] == ["config.translate"]


def test_no_sound_card_is_looked_for() -> None:
    program = (
        "import sys, modelmill\n"
        "model = modelmill.load('pocketsphinx-en')\n"
        "assert 'pocketsphinx' in sys.modules and 'sounddevice' not in sys.modules\n"
    )

    subprocess.run([sys.executable, "-c", program], check=True)


def test_a_canceled_item_is_not_decoded(sphinx: LoadedModel) -> None:
    progress = Watched(0)

    found = watched(sphinx, progress, speech(), speech())

    assert [each["text"] for each in found] == ["", SAID]
    assert progress.reports == [(1, 2, 2, "seconds")]
