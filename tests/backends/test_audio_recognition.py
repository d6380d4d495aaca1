"""Speech recognition: tiny Whispers and wav2vec2s against the library."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.loader import LoadedModel
from modelmill_backends.shared.audio import pieces
from modelmill_tasks.item_warnings import InputWarning, WarningCode
from modelmill_tasks.shared.examples import SPEECH
from tests.fixtures.listening import TASK, Watched, heard, refusal, watched
from tests.fixtures.sounds import RATE, speech, tone
from tests.fixtures.tiny import audio as tiny_audio
from tests.fixtures.tiny_models import tiny_vit
from tests.support.models import OpenModel, folder_entry

Tiny = Callable[..., LoadedModel]


@pytest.fixture(scope="module")
def tiny(open_model: OpenModel, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """``tiny("whisper", timed=False)``: the tiny model with this name, loaded."""
    kept: dict[str, Path] = {}

    def load(kind: str, dtype: str = "auto", **settings: Any) -> LoadedModel:
        key = f"{kind} {sorted(settings.items())}"
        if key not in kept:
            make = getattr(tiny_audio, f"tiny_{kind}")
            kept[key] = make(tmp_path_factory.mktemp(kind), **settings)
        return open_model(folder_entry(kept[key], TASK, options={"dtype": dtype}))

    return load


# Whisper, compared with the library.


def filled() -> Any:
    """Speech as long as the tiny model can hear at once."""
    return speech()[RATE // 4 :][: tiny_audio.WINDOW_S * RATE]


def library(model: LoadedModel, samples: Any, **settings: Any) -> Any:
    """The segments of the library's own loop, with the task and language set."""
    import torch

    weights = model.runner(TASK).weights
    inputs = weights.extractor(samples, sampling_rate=RATE, return_tensors="pt", return_attention_mask=True)
    with torch.inference_mode():
        found = weights.model.generate(
            **inputs,
            return_timestamps=True,
            return_segments=True,
            task="transcribe",
            language="en",
            **settings,
        )
    weights.model.set_attn_implementation("sdpa")
    return found["segments"][0]


def test_segments_are_those_of_the_librarys_own_loop(tiny: Tiny) -> None:
    model = tiny("whisper")
    tokenizer = model.runner(TASK).weights.loaded.tokenizer
    specials = set(tokenizer.all_special_ids)
    wanted = []
    for segment in library(model, filled()):
        tokens = [token for token in segment["tokens"].tolist() if token not in specials]
        # The end of the input leaves no time for speech.
        if segment["start"] < tiny_audio.WINDOW_S and (text := tokenizer.decode(tokens).strip()):
            wanted.append((text, float(segment["end"])))

    chunks = heard(model, filled(), return_timestamps=True, language="en")["chunks"]

    assert len(wanted) > 1
    assert [(chunk["text"], chunk["end"]) for chunk in chunks] == [
        (text, pytest.approx(min(end, tiny_audio.WINDOW_S), abs=1e-3)) for text, end in wanted
    ]


def test_words_have_the_times_of_the_librarys_alignment(tiny: Tiny) -> None:
    model = tiny("whisper")
    ends = [
        float(end)
        for segment in library(model, filled(), return_token_timestamps=True)
        for end in segment["token_timestamps"]
    ]

    chunks = heard(model, filled(), return_timestamps="word", language="en")["chunks"]

    assert len(chunks) > 1
    for chunk in chunks:
        assert min(abs(chunk["end"] - end) for end in ends) < 1e-3
    assert [chunk["end"] for chunk in chunks] == sorted(chunk["end"] for chunk in chunks)


def test_nothing_is_heard_in_the_padding(tiny: Tiny) -> None:
    model = tiny("whisper")
    for length in (0.3, 0.7, 1.1, 1.5):
        samples = speech()[: int(length * RATE)]
        for kind in (True, "word"):
            for chunk in heard(model, samples, return_timestamps=kind)["chunks"]:
                assert 0 <= chunk["start"] <= chunk["end"] <= length


def test_a_longer_recording_is_the_sum_of_its_pieces(tiny: Tiny) -> None:
    model = tiny("whisper", timed=False)
    samples = np.tile(speech(), 4)
    parts = [part for _, part in pieces(samples, RATE, tiny_audio.WINDOW_S)]

    whole = heard(model, samples, language="en")["text"]

    assert len(parts) > 5
    alone = [heard(model, part, language="en")["text"] for part in parts]
    # White space at both ends of each text is removed.
    assert "".join(whole.split()) == "".join("".join(alone).split())


@pytest.mark.parametrize("kind", [True, "word"])
def test_times_go_on_over_the_pieces(tiny: Tiny, kind: Any) -> None:
    samples = np.tile(speech(), 2)

    chunks = heard(tiny("whisper"), samples, return_timestamps=kind)["chunks"]

    starts = [chunk["start"] for chunk in chunks]
    assert starts == sorted(starts)
    assert tiny_audio.WINDOW_S < starts[-1] <= samples.size / RATE


def test_an_answer_that_reaches_the_limit_of_tokens_is_told(tiny: Tiny) -> None:
    model = tiny("whisper", timed=False)
    generation = model.runner(TASK).weights.model.generation_config
    codes = []
    for limit in (generation.max_length, 6):
        before, generation.max_length = generation.max_length, limit
        try:
            with warnings.catch_warnings(record=True) as found:
                warnings.simplefilter("always")
                text = heard(model, tone(1), language="en")["text"]
        finally:
            generation.max_length = before
        codes.append(
            (len(text), [each.message.code for each in found if isinstance(each.message, InputWarning)])
        )

    assert codes[1][0] < codes[0][0]
    assert codes[1][1] == [WarningCode.OUTPUT_CUT]


def test_language_and_task_change_what_is_heard(tiny: Tiny) -> None:
    model = tiny("whisper", timed=False)

    texts = [
        heard(model, SPEECH, language="en"),
        heard(model, SPEECH, language="de"),
        heard(model, SPEECH, language="en", translate=True),
    ]

    assert len({text["text"] for text in texts}) == 3
    assert heard(model, SPEECH, language="German") == texts[1]


def test_the_language_is_found_out_when_it_is_not_told(tiny: Tiny) -> None:
    model = tiny("whisper", timed=False)

    assert heard(model, SPEECH)["text"] in [
        heard(model, SPEECH, language=code)["text"] for code in tiny_audio.LANGUAGES
    ]


def test_an_unknown_language_is_refused_with_those_that_are_known(tiny: Tiny) -> None:
    code, message, fields = refusal(tiny("whisper"), language="klingon")

    assert (code, fields) == (ErrorCode.INVALID_INPUT, ["config.language"])
    assert message.endswith("it knows: de, en, zh")


def test_a_whisper_of_english_only_neither_knows_others_nor_translates(tiny: Tiny) -> None:
    model = tiny("whisper", multilingual=False, timed=False)

    assert heard(model, SPEECH, language="en") == heard(model, SPEECH)
    assert refusal(model, language="de")[1].endswith("it knows: en")
    assert refusal(model, translate=True)[2] == ["config.translate"]


def test_words_need_alignment_heads(tiny: Tiny) -> None:
    model = tiny("whisper", aligned=False)

    assert heard(model, SPEECH, return_timestamps=True)["chunks"] is not None
    assert refusal(model, return_timestamps="word")[2] == ["config.return_timestamps"]


def test_words_leave_the_model_as_it_was(tiny: Tiny) -> None:
    model = tiny("whisper")
    config = model.runner(TASK).weights.model.config
    before = config._attn_implementation

    heard(model, SPEECH, return_timestamps="word")

    assert config._attn_implementation == before != "eager"


def test_tokens_are_reported_and_the_unwanted_end_early(tiny: Tiny) -> None:
    progress = Watched(1)

    found = watched(tiny("whisper", timed=False), progress, tone(1), tone(1, hertz=300), language="en")

    assert found[1]["text"] == ""
    assert found[0]["text"] != ""
    assert {(index, total, unit) for index, _, total, unit in progress.reports} == {(0, 24, "tokens")}
    done = [done for _, done, _, _ in progress.reports]
    assert done == sorted(done)
    assert len(done) > 3


def test_a_long_recording_reports_seconds(tiny: Tiny) -> None:
    progress = Watched()

    watched(tiny("whisper", timed=False), progress, np.tile(speech(), 2))

    assert progress.reports[-1] == (0, 5, 5, "seconds")
    assert {unit for *_, unit in progress.reports} == {"seconds"}


# wav2vec2.


@pytest.mark.parametrize("masked", [True, False])
def test_ctc_of_a_long_recording_is_the_sum_of_its_pieces(tiny: Tiny, masked: bool) -> None:
    model = tiny("wav2vec2", masked=masked)
    samples = np.tile(speech(), 13)
    parts = pieces(samples, RATE, 30)

    found = heard(model, samples, return_timestamps="word")

    assert len(parts) == 2
    alone = [heard(model, part, return_timestamps="word") for _, part in parts]
    assert found["text"] == " ".join(each["text"] for each in alone)
    last, offset_s = alone[1]["chunks"][-1], parts[1][0] / RATE
    assert found["chunks"][-1]["end"] == pytest.approx(last["end"] + offset_s, abs=2e-3)


def test_ctc_makes_segments_of_words(tiny: Tiny) -> None:
    model = tiny("wav2vec2", masked=True)

    words = heard(model, SPEECH, return_timestamps="word")
    segments = heard(model, SPEECH, return_timestamps=True)

    assert words["text"] == segments["text"] == " ".join(chunk["text"] for chunk in segments["chunks"])
    assert segments["chunks"][0]["start"] == words["chunks"][0]["start"]
    assert segments["chunks"][-1]["end"] == words["chunks"][-1]["end"]
    assert heard(model, SPEECH)["chunks"] is None


def test_ctc_knows_one_language_and_does_not_translate(tiny: Tiny) -> None:
    model = tiny("wav2vec2", masked=False)

    assert refusal(model, language="en")[2] == ["config.language"]
    assert refusal(model, translate=True)[2] == ["config.translate"]


def test_a_fragment_is_refused(tiny: Tiny) -> None:
    code, message, _ = refusal(tiny("wav2vec2", masked=False), tone(0.05))

    assert code == ErrorCode.INVALID_MEDIA
    assert "shorter than" in message


# Both recognisers.


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize(("kind", "made"), [("whisper", {}), ("wav2vec2", {"masked": True})])
def test_half_precision_answers(tiny: Tiny, kind: str, made: dict[str, Any], dtype: str) -> None:
    model = tiny(kind, dtype, **made)

    assert heard(model, SPEECH, return_timestamps="word")["chunks"] is not None


def test_a_model_that_hears_nothing_does_not_load(open_model: OpenModel, tmp_path: Path) -> None:
    with pytest.raises(
        ModelmillError, match="ViTForImageClassification is not supported for speech recognition"
    ) as raised:
        open_model(folder_entry(tiny_vit(tmp_path), TASK))

    assert raised.value.code == ErrorCode.MODEL_LOAD_FAILED


def test_a_model_without_its_feature_extractor_does_not_load(open_model: OpenModel, tmp_path: Path) -> None:
    tiny_audio.tiny_wav2vec2(tmp_path, masked=False)
    (tmp_path / "preprocessor_config.json").unlink(missing_ok=True)
    (tmp_path / "processor_config.json").unlink(missing_ok=True)

    with pytest.raises(ModelmillError, match="feature extractor") as raised:
        open_model(folder_entry(tmp_path, TASK))

    assert str(tmp_path) not in raised.value.message


def test_a_feature_extractor_that_fails_without_a_word_is_told_by_the_kind_of_error(
    open_model: OpenModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import transformers

    def fail(*_: Any, **__: Any) -> None:
        raise OSError

    monkeypatch.setattr(transformers.AutoFeatureExtractor, "from_pretrained", fail)

    with pytest.raises(ModelmillError, match="feature extractor cannot be loaded: OSError"):
        open_model(folder_entry(tiny_audio.tiny_wav2vec2(tmp_path, masked=False), TASK))
