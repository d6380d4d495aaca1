"""Models that judge single tokens: names in texts, and gaps to fill."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelmill_backends.transformers.entities import Token, entities
from modelmill_tasks.token_classification import AggregationStrategy
from tests.fixtures.specimens.texts import STRATEGIES, filled, pieces, pipeline, tagged
from tests.support.models import OpenModel, folder_entry
from tests.support.texts import LONG, ask, refusal

TAG, FILL = "token-classification", "fill-mask"


@pytest.mark.parametrize("tokenizer", ["wordpiece", "byte-level"])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_equals_the_pipeline(
    open_model: OpenModel, tiny_text: Callable[..., Path], strategy: str, tokenizer: str
) -> None:
    folder = tiny_text("ner", tokenizer=tokenizer)
    texts = [*pieces(8), "Ünïcödé: 猫 and 😺, by Anna\tof  Ravensburg.", "?!"]
    items = [{"text": text, "config": {"aggregation_strategy": strategy}} for text in texts]

    answers = ask(open_model(folder_entry(folder, TAG)), TAG, *items)

    for got, wanted in zip(answers, tagged(folder, items), strict=True):
        assert [drop_score(part) for part in got["results"]] == [
            drop_score(part) for part in wanted["results"]
        ]
        assert [part["score"] for part in got["results"]] == pytest.approx(
            [part["score"] for part in wanted["results"]], abs=1e-4
        )
    assert sum(len(answer["results"]) for answer in answers) > 20


def drop_score(part: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in part.items() if key != "score"}


def test_places_count_code_points(open_model: OpenModel, tiny_text: Callable[..., Path]) -> None:
    model = open_model(folder_entry(tiny_text("ner"), TAG))
    text = "😺😺 " + pieces()[3]

    (answer,) = ask(model, TAG, {"text": text})

    assert answer["results"]
    for part in answer["results"]:
        assert part["word"] == text[part["start"] : part["end"]]


def test_a_long_text_is_read_to_its_end_and_nothing_twice(
    open_model: OpenModel, tiny_text: Callable[..., Path]
) -> None:
    model = open_model(folder_entry(tiny_text("ner", window=64), TAG))
    text = " ".join(pieces(16))

    (answer,) = ask(model, TAG, {"text": text, "config": {"aggregation_strategy": "none"}})
    parts = answer["results"]

    assert [part["start"] for part in parts] == sorted({part["start"] for part in parts})
    assert parts[-1]["end"] > len(text) - 40


def test_a_token_has_the_scores_of_the_window_in_which_it_is_further_inside(
    open_model: OpenModel, tiny_text: Callable[..., Path]
) -> None:
    """The same in simple code: each window separately, and half of the overlap from each window."""
    import torch

    model = open_model(folder_entry(tiny_text("ner", window=64), TAG))
    weights = model.runner(TAG).weights
    text, labels = " ".join(pieces(16)), weights.model.config.id2label
    tokens = weights.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids, room, overlap = tokens["input_ids"], 62, 15
    wanted: list[str] = []
    for start in range(0, len(ids) - overlap, room - overlap):
        window = [weights.tokenizer.cls_token_id, *ids[start : start + room], weights.tokenizer.sep_token_id]
        with torch.inference_mode():
            best = weights.model(torch.tensor([window])).logits[0, 1:-1].argmax(-1).tolist()
        # The first 8 of the 15 belong to the previous window, the other 7 to this one.
        wanted = [*wanted[: start + 8], *best[8:]] if start else best

    (answer,) = ask(model, TAG, {"text": text, "config": {"aggregation_strategy": "none"}})

    offsets = tokens["offset_mapping"]
    expected = [(labels[tag], *offsets[index]) for index, tag in enumerate(wanted) if labels[tag] != "O"]
    got = [(part["entity_group"], part["start"], part["end"]) for part in answer["results"]]
    assert len(ids) > 3 * room
    assert got == expected


def test_a_text_of_100_000_tokens_is_tagged(open_model: OpenModel, tiny_text: Callable[..., Path]) -> None:
    model = open_model(folder_entry(tiny_text("ner"), TAG))

    (answer,) = ask(model, TAG, {"text": LONG, "config": {"aggregation_strategy": "none"}})

    assert answer["results"] == [] or answer["results"][-1]["end"] <= len(LONG)


def test_a_text_of_spaces_holds_nothing(open_model: OpenModel, tiny_text: Callable[..., Path]) -> None:
    error = refusal(open_model(folder_entry(tiny_text("ner"), TAG)), TAG, {"text": "  \n "})

    assert error.fields[0].field == "text"


def test_b_begins_an_entity_and_i_goes_on_with_it() -> None:
    text = "Anna Maria Berlin"
    labels = ("O", "B-PER", "I-PER", "B-LOC")
    tags = [(0, 4, 1), (5, 10, 2), (11, 14, 3), (14, 17, 3)]
    tokens = [Token(start, end, np.eye(4)[tag] * 0.9, start == 14) for start, end, tag in tags]

    simple = entities(text, tokens, labels, AggregationStrategy.SIMPLE)
    by_words = entities(text, tokens, labels, AggregationStrategy.FIRST)

    assert [(part.entity_group, part.word) for part in simple] == [
        ("PER", "Anna Maria"),
        ("LOC", "Ber"),
        ("LOC", "lin"),
    ]
    assert [(part.entity_group, part.word) for part in by_words] == [("PER", "Anna Maria"), ("LOC", "Berlin")]


def test_the_strategies_disagree_where_a_words_tokens_do() -> None:
    labels = ("O", "A", "B", "C")
    scores = ([0.1, 0.5, 0.4, 0.0], [0.1, 0.0, 0.5, 0.4], [0.0, 0.0, 0.4, 0.6])
    tokens = [Token(index, index + 1, np.array(values), index > 0) for index, values in enumerate(scores)]

    found = {
        strategy: entities("abc", tokens, labels, AggregationStrategy(strategy))[0].entity_group
        for strategy in ("first", "average", "max")
    }

    assert found == {"first": "A", "average": "B", "max": "C"}


class TestGaps:
    @pytest.mark.parametrize("kind", ["bert", "roberta"])
    def test_equals_the_pipeline(
        self, open_model: OpenModel, tiny_text: Callable[..., Path], kind: str
    ) -> None:
        folder = tiny_text("mlm", kind=kind)
        texts = ["The old [MASK] at the end.", "[MASK]", "Anna, <mask> of Ravensburg,  was glad."]
        items = [{"text": text, "config": {"top_k": 7}} for text in texts]

        for got, wanted in zip(
            ask(open_model(folder_entry(folder, FILL)), FILL, *items), filled(folder, items), strict=True
        ):
            assert [drop_score(part) for part in got["results"]] == [
                drop_score(part) for part in wanted["results"]
            ]

    @pytest.mark.parametrize(("kind", "own"), [("bert", "[MASK]"), ("roberta", "<mask>")])
    def test_any_spelling_is_the_models_own(
        self, open_model: OpenModel, tiny_text: Callable[..., Path], kind: str, own: str
    ) -> None:
        model = open_model(folder_entry(tiny_text("mlm", kind=kind), FILL))

        bert, roberta = ask(
            model, FILL, {"text": "The [MASK] was mended."}, {"text": "The <mask> was mended."}
        )

        assert [part["token"] for part in bert["results"]] == [part["token"] for part in roberta["results"]]

    def test_the_other_spelling_is_text_where_the_own_occurs(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("mlm"), FILL))

        (answer,) = ask(model, FILL, {"text": "The [MASK] is no <mask>."})

        assert "mask" in answer["results"][0]["sequence"].replace(" ", "")

    @pytest.mark.parametrize(
        ("kind", "text"),
        [
            *(
                (kind, text)
                for kind in ("bert", "roberta")
                for text in ("No gap.", "<mask> [MASK] <mask> [MASK]")
            ),
            ("bert", "[MASK] and [MASK]"),
            ("bert", "<mask><mask>"),
            ("roberta", "<mask><mask>"),
            ("roberta", "[MASK] and [MASK]"),
        ],
    )
    def test_no_gap_or_several_are_refused_with_the_models_own(
        self, open_model: OpenModel, tiny_text: Callable[..., Path], kind: str, text: str
    ) -> None:
        error = refusal(open_model(folder_entry(tiny_text("mlm", kind=kind), FILL)), FILL, {"text": text})

        assert error.fields[0].field == "text"
        assert {"bert": "[MASK]", "roberta": "<mask>"}[kind] in error.message

    def test_top_k_is_each_items_own(self, open_model: OpenModel, tiny_text: Callable[..., Path]) -> None:
        model = open_model(folder_entry(tiny_text("mlm"), FILL))
        items = [{"text": "A [MASK].", "config": {"top_k": top_k}} for top_k in (1, 1000, 5)]

        counts = [len(answer["results"]) for answer in ask(model, FILL, *items)]

        vocabulary = model.runner(FILL).weights.model.config.vocab_size
        assert counts == [1, vocabulary, 5]

    @pytest.mark.parametrize("kind", ["bert", "roberta"])
    @pytest.mark.parametrize("place", ["first", "middle", "last"])
    def test_a_long_text_is_cut_off_around_its_gap(
        self, open_model: OpenModel, tiny_text: Callable[..., Path], kind: str, place: str
    ) -> None:
        model = open_model(folder_entry(tiny_text("mlm", kind=kind), FILL))
        before, after = {"first": ("", LONG), "middle": (LONG[:9000], LONG), "last": (LONG, "")}[place]

        (answer,) = ask(model, FILL, {"text": f"{before}a [MASK] of{after}"})

        assert len(answer["results"]) == 5
        assert "a a a" in answer["results"][0]["sequence"].replace("  ", " ")


def test_the_pipeline_is_there(tiny_text: Callable[..., Path]) -> None:
    """The tests above compare with this pipeline."""
    with pipeline(TAG, tiny_text("ner")) as found:
        assert type(found).__name__ == "TokenClassificationPipeline"
