"""Classifiers of sounds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.audio_classification import Input
from modelmill_tasks.item_warnings import ItemWarning, WarningCode, collecting
from modelmill_tasks.shared.examples import SPEECH
from tests.fixtures.sounds import RATE, sound_url, speech, tone
from tests.fixtures.tiny.audio import LABELS, tiny_ast, tiny_wav2vec2_classifier
from tests.support.models import OpenModel, folder_entry

TASK = "audio-classification"


@pytest.fixture
def load(open_model: OpenModel, tmp_path: Path) -> Callable[..., LoadedModel]:
    def make(build: Callable[..., Path], **settings: Any) -> LoadedModel:
        return open_model(folder_entry(build(tmp_path, **settings), TASK))

    return make


def scores(model: LoadedModel, *audio: Any, top_k: int = 4) -> list[dict[str, float]]:
    items = [
        {"audio": each if isinstance(each, str) else sound_url(each), "config": {"top_k": top_k}}
        for each in audio
    ]
    return [
        {each["label"]: each["score"] for each in output.model_dump()["classes"]}
        for output in model.answer(TASK, *items)
    ]


def test_scores_come_best_first_and_sum_to_one(load: Callable[..., LoadedModel]) -> None:
    (found,) = scores(load(tiny_ast), SPEECH)

    assert set(found) == set(LABELS.values())
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert sum(found.values()) == pytest.approx(1)


def test_a_multi_label_models_scores_stand_alone(load: Callable[..., LoadedModel]) -> None:
    model = load(tiny_wav2vec2_classifier, masked=False, problem="multi_label_classification")

    (found,) = scores(model, SPEECH)

    assert sum(found.values()) != pytest.approx(1, abs=0.01)


def test_top_k_may_be_more_than_there_are(load: Callable[..., LoadedModel]) -> None:
    model = load(tiny_ast)

    assert len(scores(model, SPEECH, top_k=1000)[0]) == len(LABELS)
    assert len(scores(model, SPEECH, top_k=1)[0]) == 1


def test_only_the_first_minute_is_heard(load: Callable[..., LoadedModel]) -> None:
    model = load(tiny_wav2vec2_classifier, masked=False)
    minute = np.tile(speech(), 22)[: 60 * RATE]

    alone, longer = scores(model, minute, np.concatenate([minute, tone(5)]))

    assert longer == alone


@pytest.mark.parametrize(
    ("length_s", "message"), [(60, None), (65, "The model heard the first 60 s of 65.0 s.")]
)
def test_what_is_longer_than_a_minute_is_told(
    load: Callable[..., LoadedModel], length_s: float, message: str | None
) -> None:
    runner = load(tiny_wav2vec2_classifier, masked=False).runner(TASK)
    found: list[ItemWarning] = []

    with collecting(found):
        runner.preprocess(Input(audio=sound_url(tone(length_s))))

    assert found == ([ItemWarning(WarningCode.SOUND_CUT, message)] if message else [])


def test_what_is_longer_than_a_spectrogram_models_window_is_told(load: Callable[..., LoadedModel]) -> None:
    runner = load(tiny_ast).runner(TASK)
    window_s = runner.weights.extractor.max_length / 100
    found: list[ItemWarning] = []

    with collecting(found):
        runner.preprocess(Input(audio=sound_url(tone(window_s + 3))))

    assert [each.message for each in found] == [
        f"The model heard the first {window_s:.3g} s of {window_s + 3:.1f} s."
    ]
    inside, longer = scores(
        load(tiny_ast), tone(window_s + 1), np.concatenate([tone(window_s + 1), speech()])
    )
    assert longer == inside


def test_many_recordings_take_several_passes(load: Callable[..., LoadedModel]) -> None:
    model = load(tiny_wav2vec2_classifier, masked=True)
    sounds = [speech()[index * 400 :] for index in range(20)]

    together = scores(model, *sounds)

    for index in (0, 7, 19):
        (alone,) = scores(model, sounds[index])
        assert together[index] == pytest.approx(alone, abs=1e-4)


def test_a_fragment_is_refused(load: Callable[..., LoadedModel]) -> None:
    with pytest.raises(ModelmillError, match="shorter") as raised:
        scores(load(tiny_ast), tone(0.05))

    assert raised.value.code == ErrorCode.INVALID_MEDIA


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_is_near(open_model: OpenModel, tmp_path: Path, dtype: str) -> None:
    folder = tiny_wav2vec2_classifier(tmp_path, masked=True)

    (exact,) = scores(open_model(folder_entry(folder, TASK)), SPEECH)
    (rough,) = scores(open_model(folder_entry(folder, TASK, options={"dtype": dtype})), SPEECH)

    assert rough == pytest.approx(exact, abs=0.05)
