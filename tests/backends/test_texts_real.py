"""Real weights on real texts: MiniLM's three tasks, and the model that identifies languages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelmill.catalogue import ModelEntry, Source
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.registry import find_task
from tests.fixtures.tiny_models import tiny_encoder
from tests.support.models import OpenModel, folder_entry
from tests.support.texts import LONG, ask

COMPARE, CHOOSE, CLASSIFY = "sentence-similarity", "zero-shot-classification", "text-classification"
EMBED = "text-embedding"

FOOD = "A man is eating food."


def test_minilm_reads_its_weights_once_for_three_tasks(open_model: OpenModel) -> None:
    model = open_model("minilm")

    assert model.runner(EMBED).weights is model.runner(COMPARE).weights is model.runner(CHOOSE).weights


def test_minilm_compares_by_meaning(open_model: OpenModel) -> None:
    sentences = [
        "A man eats something.",
        "A man is eating a piece of bread.",
        "A man is riding a horse.",
        "The stock market fell sharply.",
    ]

    (answer,) = ask(open_model("minilm"), COMPARE, {"source_sentence": FOOD, "sentences": sentences})
    same, near, far, unrelated = answer["scores"]

    assert same > 0.6 > far > unrelated
    assert near > 0.6
    assert unrelated < 0.1


def test_a_sentence_is_wholly_like_itself(open_model: OpenModel) -> None:
    (answer,) = ask(open_model("minilm"), COMPARE, {"source_sentence": FOOD, "sentences": [FOOD, "x"]})

    assert answer["scores"][0] == pytest.approx(1, abs=1e-5)
    assert answer["scores"][0] <= 1


def test_sentences_are_encoded_once_for_all_items(open_model: OpenModel) -> None:
    runner: Any = open_model("minilm").runner(COMPARE)
    sentences = ["The owls moved to the church tower.", "The wheel was mended by autumn."]
    before = len(runner._sentences)

    ask(
        open_model("minilm"),
        COMPARE,
        *({"source_sentence": source, "sentences": sentences} for source in ("owls", "a wheel", "autumn")),
    )

    assert len(runner._sentences) == before + 2
    assert runner._tokenized_once.cache_info().hits >= 2


@pytest.mark.parametrize("backend", ["onnx", "transformers"])
def test_long_sentences_are_cut_off_and_not_kept_whole(
    open_model: OpenModel, tmp_path_factory: pytest.TempPathFactory, backend: str
) -> None:
    model = open_model(
        "minilm"
        if backend == "onnx"
        else folder_entry(tiny_encoder(tmp_path_factory.mktemp("encoder")), COMPARE)
    )

    (answer,) = ask(model, COMPARE, {"source_sentence": LONG, "sentences": [LONG, LONG[:5000], "mill"]})

    assert answer["scores"][:2] == pytest.approx([1, 1], abs=1e-4)
    runner: Any = model.runner(COMPARE)
    assert all(len(tokens) <= 256 for tokens in runner._sentences._kept)


CHOICES = [
    ("The striker scored twice in the second half.", ["politics", "sport", "cooking"], "sport"),
    (
        "The central bank raised interest rates by half a percent.",
        ["economy", "sport", "health", "travel"],
        "economy",
    ),
    (
        "Whisk the eggs with sugar until they are pale, then fold in the flour.",
        ["music", "gardening", "sport", "cooking"],
        "cooking",
    ),
    (
        "Thank you, the service was wonderful and everybody was so kind.",
        ["complaint", "praise", "question"],
        "praise",
    ),
    (
        "I was charged twice for the same order, please refund me.",
        ["technical problem", "billing", "praise"],
        "billing",
    ),
    ("The orchestra played Beethoven's fifth symphony.", ["medicine", "law", "sport", "music"], "music"),
    ("Take two tablets a day after meals, for one week.", ["law", "medicine", "tourism", "cars"], "medicine"),
    ("The puppy chased its own tail around the garden.", ["finance", "technology", "animals"], "animals"),
]


@pytest.mark.parametrize(("text", "classes", "winner"), CHOICES, ids=[winner for _, _, winner in CHOICES])
def test_minilm_chooses_the_class_that_the_text_is_about(
    open_model: OpenModel, text: str, classes: list[str], winner: str
) -> None:
    (answer,) = ask(open_model("minilm"), CHOOSE, {"text": text, "classes": classes})
    scores = dict(zip(classes, answer["probabilities"], strict=True))

    assert max(scores, key=lambda name: scores[name]) == winner
    assert scores[winner] > 0.7
    assert sum(scores.values()) == pytest.approx(1)


def test_with_multi_label_each_class_is_judged_by_itself(open_model: OpenModel) -> None:
    text = "The new stadium cost the city twice as much as the council had planned."
    classes = ["sport", "politics", "baking bread"]
    config = {"multi_label": True}

    together, alone = ask(
        open_model("minilm"),
        CHOOSE,
        {"text": text, "classes": classes, "config": config},
        {"text": text, "classes": classes[:1], "config": config},
    )

    sport, _, bread = together["probabilities"]
    assert alone["probabilities"] == pytest.approx([sport], abs=1e-5)
    assert sport > 0.6 > 0.5 > bread


def test_the_scale_sharpens(open_model: OpenModel, context_of: Callable[..., LoadContext]) -> None:
    entry = context_of("minilm").entry
    soft = open_model(entry.model_copy(update={"options": {"scale": 1.0}}))
    item = {"text": CHOICES[0][0], "classes": CHOICES[0][1]}

    (sharp,), (blunt,) = ask(open_model("minilm"), CHOOSE, item), ask(soft, CHOOSE, item)

    assert max(sharp["probabilities"]) > max(blunt["probabilities"]) + 0.3


def test_a_text_longer_than_the_window_is_cut_off(open_model: OpenModel) -> None:
    (answer,) = ask(open_model("minilm"), CHOOSE, {"text": "football " * 50_000, "classes": ["sport", "tax"]})

    assert answer["probabilities"][0] > 0.9


LANGUAGES = {
    "en": "The train to Hamburg leaves at eight o'clock.",
    "fr": "Le train pour Paris part à huit heures.",
    "es": "El tren a Madrid sale a las ocho.",
    "it": "Il treno per Roma parte alle otto.",
    "pt": "O comboio para Lisboa parte às oito horas.",
    "nl": "De trein naar Amsterdam vertrekt om acht uur.",
    "sv": "Tåget till Stockholm avgår klockan åtta.",
    "pl": "Pociąg do Warszawy odjeżdża o ósmej.",
    "ru": "Поезд в Москву отправляется в восемь часов.",
    "tr": "Tren saat sekizde Ankara'ya hareket ediyor.",
    "ja": "東京行きの列車は八時に出発します。",
    "zh": "开往北京的火车八点出发。",
    "ko": "서울행 기차는 여덟 시에 출발합니다.",
    "ar": "ينطلق القطار إلى القاهرة في الساعة الثامنة.",
    "el": "Το τρένο για την Αθήνα φεύγει στις οκτώ.",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_are_told_apart(open_model: OpenModel, language: str) -> None:
    (answer,) = ask(open_model("language-id"), CLASSIFY, {"text": LANGUAGES[language]})

    assert answer["results"][0]["label"] == language
    assert answer["results"][0]["score"] > 0.8


def test_capitals_do_not_change_the_language(open_model: OpenModel) -> None:
    (answer,) = ask(open_model("language-id"), CLASSIFY, {"text": "DAS WETTER IST HEUTE SCHÖN"})

    assert answer["results"][0]["label"] == "de"


def test_line_breaks_are_spaces_and_any_length_is_read(open_model: OpenModel) -> None:
    broken, plain, long = ask(
        open_model("language-id"),
        CLASSIFY,
        {"text": "Der Zug\r\nfährt um\u2028acht\nUhr ab.\n", "config": {"top_k": 1}},
        {"text": "Der Zug fährt um acht Uhr ab.", "config": {"top_k": 1}},
        {"text": "Der Hund läuft. " * 60_000, "config": {"top_k": 3}},
    )

    assert broken == plain
    assert [part["label"] for part in long["results"]][:1] == ["de"]
    assert len(long["results"]) <= 3


@pytest.mark.parametrize("text", [" ", "\n", "\0", "12345 !!", "😺", "x" * 10_000])
def test_what_is_no_language_is_answered_all_the_same(open_model: OpenModel, text: str) -> None:
    (answer,) = ask(open_model("language-id"), CLASSIFY, {"text": text, "config": {"top_k": 1000}})

    assert answer["results"]
    assert all(0 <= part["score"] <= 1 for part in answer["results"])


def test_a_file_that_is_no_fasttext_model_does_not_load(
    context_of: Callable[..., LoadContext], tmp_path: Path
) -> None:
    (tmp_path / "model.ftz").write_bytes(b"no model" * 100)
    entry = ModelEntry(name="broken", backend="fasttext", source=Source(folder=tmp_path), tasks=(CLASSIFY,))

    with pytest.raises(ModelmillError, match="not a fastText model") as caught:
        LoadedModel(context_of(entry)).load()

    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED


@pytest.mark.parametrize("task", [CLASSIFY, CHOOSE, COMPARE])
def test_the_example_of_the_contract_is_what_the_model_says(open_model: OpenModel, task: str) -> None:
    example = find_task(task).example

    (answer,) = ask(open_model(example.model), task, dict(example.input))

    for name, wanted in example.output.items():
        if isinstance(wanted[0], float):
            assert answer[name] == pytest.approx(wanted, abs=1e-4)
        else:
            assert [part["label"] for part in answer[name]] == [part["label"] for part in wanted]
            assert [part["score"] for part in answer[name]] == pytest.approx(
                [part["score"] for part in wanted], abs=1e-4
            )


def test_the_end_mark_of_fasttext_is_a_word_of_the_text(open_model: OpenModel) -> None:
    french = "Je voudrais une tasse de café, s'il vous plaît. Il fait très beau aujourd'hui à Paris."

    for text in (f"hello </s> {french}", f"</s> {french}", f"hello\n</s>\n{french}"):
        (answer,) = ask(open_model("language-id"), CLASSIFY, {"text": text})
        assert answer["results"][0]["label"] == "fr"
