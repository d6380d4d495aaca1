"""Text to speech."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.item_warnings import ItemWarning, WarningCode, collecting
from modelmill_tasks.shared.sources import source_bytes
from modelmill_tasks.text_to_speech import Input
from tests.fixtures.tiny.audio import tiny_vits, tiny_whisper
from tests.support.models import OpenModel, folder_entry

TASK = "text-to-speech"
TEXT = "the mill turns again"

Load = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def load(open_model: OpenModel, tmp_path_factory: pytest.TempPathFactory) -> Load:
    kept: dict[str, Path] = {}

    def make(**settings: Any) -> LoadedModel:
        key = str(sorted(settings.items()))
        if key not in kept:
            kept[key] = tiny_vits(tmp_path_factory.mktemp("vits"), **settings)
        return open_model(folder_entry(kept[key], TASK))

    return make


def said(model: LoadedModel, *texts: str, **config: Any) -> list[dict[str, Any]]:
    items = [{"text": text, "config": config} for text in texts]
    return [output.model_dump(exclude={"created"}) for output in model.answer(TASK, *items)]


def refusal(model: LoadedModel, text: str, **config: Any) -> tuple[ErrorCode, str, list[str]]:
    with pytest.raises(ModelmillError) as raised:
        said(model, text, **config)
    return raised.value.code, raised.value.message, [each.field for each in raised.value.fields]


def test_the_answer_is_a_wav_of_16_bits(load: Load) -> None:
    (found,) = said(load(), TEXT)

    with soundfile.SoundFile(io.BytesIO(source_bytes(found["audio"]))) as file:
        assert (file.format, file.subtype, file.channels) == ("WAV", "PCM_16", 1)
        assert file.samplerate == found["sampling_rate"] == 16_000
        assert file.frames / file.samplerate == pytest.approx(found["duration_s"], abs=1e-4)
        assert np.abs(file.read()).max() > 0


def test_the_seed_decides_how_a_text_is_said(load: Load) -> None:
    model = load()

    assert said(model, TEXT, seed=7) == said(model, TEXT, seed=7)
    assert said(model, TEXT, seed=7) != said(model, TEXT, seed=8)
    assert said(model, TEXT) == said(model, TEXT, seed=0)


def test_a_text_sounds_the_same_among_others(load: Load) -> None:
    model = load()
    texts = ["a", TEXT, "go forward ten meters", TEXT]

    together = said(model, *texts, seed=3)

    assert together == [said(model, text, seed=3)[0] for text in texts]
    assert together[1] == together[3]


def test_random_numbers_of_other_code_stay_the_same(load: Load) -> None:
    import torch

    model = load()
    torch.manual_seed(5)
    wanted = torch.rand(3)
    torch.manual_seed(5)

    said(model, TEXT)

    assert torch.equal(torch.rand(3), wanted)


def test_speakers_differ_and_the_unknown_is_refused(load: Load) -> None:
    model = load(speakers=3)

    voices = [said(model, TEXT, speaker=speaker)[0]["audio"] for speaker in range(3)]

    assert len(set(voices)) == 3
    assert said(model, TEXT)[0]["audio"] == voices[0]
    code, message, fields = refusal(model, TEXT, speaker=3)
    assert (code, fields) == (ErrorCode.INVALID_INPUT, ["config.speaker"])
    assert message.endswith("has the voices 0 to 2")


def test_a_single_voice_is_number_0(load: Load) -> None:
    assert said(load(), TEXT, speaker=0) == said(load(), TEXT)
    assert refusal(load(), TEXT, speaker=1)[1].endswith("has one voice only")


def test_capitals_and_what_cannot_be_spoken_make_no_difference(load: Load) -> None:
    assert said(load(), "The Mill, turns (again)!") == said(load(), TEXT)


@pytest.mark.parametrize(
    ("text", "left_out"),
    [
        (TEXT, None),
        ("The Mill, turns (again)!", None),
        ("go forward 10 meters", "The model cannot speak 2 of the text's characters and left them out: 0 1"),
        ("a 漢 b", "The model cannot speak 1 of the text's characters and left them out: 漢"),
    ],
)
def test_letters_and_digits_that_are_left_out_are_told(load: Load, text: str, left_out: str | None) -> None:
    runner = load().runner(TASK)
    found: list[ItemWarning] = []

    with collecting(found):
        runner.preprocess(Input(text=text))

    assert found == ([ItemWarning(WarningCode.TEXT_UNKNOWN, left_out)] if left_out else [])


def test_sound_that_is_not_numbers_is_an_error_and_no_silence(load: Load) -> None:
    runner = load().runner(TASK)
    prepared = runner.preprocess(Input(text=TEXT))

    with pytest.raises(ModelmillError) as raised:
        runner.postprocess(prepared, np.array([0.0, np.nan], np.float32))

    assert raised.value.code == ErrorCode.INFERENCE_FAILED


@pytest.mark.parametrize("text", ["123", "…", " ", "漢字"])
def test_a_text_without_anything_to_say_is_refused(load: Load, text: str) -> None:
    code, _, fields = refusal(load(), text)

    assert (code, fields) == (ErrorCode.INVALID_INPUT, ["text"])


@pytest.mark.parametrize(
    ("needs", "package"), [({"is_uroman": True}, "uroman"), ({"phonemize": True}, "phonemizer")]
)
def test_a_model_that_needs_another_package_says_which(
    load: Load, needs: dict[str, Any], package: str
) -> None:
    with pytest.raises(ModelmillError, match=f"package {package}") as raised:
        load(**needs)

    assert raised.value.code == ErrorCode.MODEL_LOAD_FAILED


def test_a_model_without_a_voice_does_not_load(open_model: OpenModel, tmp_path: Path) -> None:
    with pytest.raises(ModelmillError) as raised:
        open_model(folder_entry(tiny_whisper(tmp_path), TASK))

    assert raised.value.code == ErrorCode.MODEL_LOAD_FAILED
