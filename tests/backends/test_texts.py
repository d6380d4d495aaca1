"""How texts become rows for a model, and models that judge whole texts: classification and inference."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modelmill.catalogue import Catalogue
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from modelmill_backends.transformers.texts import TextInputs
from modelmill_tasks.registry import find_task
from modelmill_tasks.text_classification import TASK as CONTRACT
from tests.fixtures.specimens.texts import classified, pieces, pipeline
from tests.support.models import OpenModel, folder_entry
from tests.support.texts import LONG, ask, refusal

CLASSIFY, CHOOSE = "text-classification", "zero-shot-classification"


class Watched:
    """A slow tokenizer that records whether two calls overlapped."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._busy = threading.Lock()
        self.met = threading.Event()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        if not self._busy.acquire(blocking=False):
            self.met.set()
            return self._tokenizer(*arguments, **options)
        try:
            self.met.wait(0.1)
            return self._tokenizer(*arguments, **options)
        finally:
            self._busy.release()


class TestInputs:
    def test_texts_of_any_number_and_length_come_back_in_order(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        loaded = open_model(folder_entry(tiny_text("classifier"), CLASSIFY)).runner(CLASSIFY).weights
        # So few tokens per pass that many passes are needed.
        texts, alone = TextInputs(loaded, tokens_a_pass=40), TextInputs(loaded, tokens_a_pass=1)
        rows = [texts.row(texts.encode(text)) for text in pieces(12)]

        np.testing.assert_allclose(texts.logits(rows), alone.logits(rows), atol=1e-5)

    def test_roberta_sees_fewer_tokens_than_it_has_positions(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("mlm", kind="roberta"), "fill-mask"))
        weights = model.runner("fill-mask").weights

        assert weights.model.config.max_position_embeddings == 66
        assert TextInputs(weights).window == 64

    def test_a_cut_text_has_as_many_tokens_as_asked_for(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        texts = TextInputs(
            open_model(folder_entry(tiny_text("classifier"), CLASSIFY)).runner(CLASSIFY).weights
        )

        cut = texts.cut(pieces()[5], 10)

        assert pieces()[5].startswith(cut)
        assert texts.length(cut) == 10 + 2
        assert texts.cut("A mill.", 10) == "A mill."

    def test_threads_share_one_tokenizer(self, open_model: OpenModel, tiny_text: Callable[..., Path]) -> None:
        texts = TextInputs(
            open_model(folder_entry(tiny_text("classifier"), CLASSIFY)).runner(CLASSIFY).weights
        )

        def once(index: int) -> tuple[int, int, str]:
            ids = texts.encode(pieces()[index % 16])["input_ids"]
            shorter = texts.encode(LONG[:500], max_length=5 + index % 7)["input_ids"]
            return len(ids), len(shorter), texts.decode(ids)

        with ThreadPoolExecutor(8) as pool:
            found = list(pool.map(once, range(64)))

        assert found == [once(index) for index in range(64)]
        assert [shorter for _, shorter, _ in found] == [5 + index % 7 for index in range(64)]


class TestClassification:
    @pytest.mark.parametrize(
        ("problem", "labels"),
        [
            ("single_label_classification", ("calm", "glad", "sad")),
            ("multi_label_classification", ("calm", "glad", "sad")),
            ("regression", ("stars",)),
            (None, ("spam",)),
        ],
    )
    def test_equals_the_pipeline_for_each_kind_of_problem(
        self, open_model: OpenModel, tiny_text: Callable[..., Path], problem: Any, labels: tuple[str, ...]
    ) -> None:
        folder = tiny_text("classifier", problem=problem, labels=labels)
        items = [{"text": text, "config": {"top_k": 2}} for text in pieces(6)]

        for got, wanted in zip(
            ask(open_model(folder_entry(folder, CLASSIFY)), CLASSIFY, *items),
            classified(folder, items),
            strict=True,
        ):
            assert [part["label"] for part in got["results"]] == [part["label"] for part in wanted["results"]]
            assert [part["score"] for part in got["results"]] == pytest.approx(
                [part["score"] for part in wanted["results"]], abs=1e-4
            )

    def test_a_regression_model_gives_its_number_as_it_is(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(
            folder_entry(tiny_text("classifier", problem="regression", labels=("stars",)), CLASSIFY)
        )

        scores = [
            answer["results"][0]["score"]
            for answer in ask(model, CLASSIFY, *({"text": text} for text in pieces(8)))
        ]

        assert min(scores) < 0 or max(scores) > 1

    def test_a_model_without_padding_takes_a_batch_all_the_same(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("decoder_classifier"), CLASSIFY))
        items = [{"text": text} for text in pieces(5)]

        together = ask(model, CLASSIFY, *items)

        assert together == [ask(model, CLASSIFY, item)[0] for item in items]

    def test_top_k_bounds_the_labels(self, open_model: OpenModel, tiny_text: Callable[..., Path]) -> None:
        model = open_model(folder_entry(tiny_text("classifier"), CLASSIFY))

        one, all_of_them = ask(
            model, CLASSIFY, {"text": "A mill.", "config": {"top_k": 1}}, {"text": "A mill."}
        )

        assert len(one["results"]) == 1
        assert sum(part["score"] for part in all_of_them["results"]) == pytest.approx(1)
        assert one["results"][0] == all_of_them["results"][0]

    def test_a_text_longer_than_the_window_is_cut_off(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("classifier"), CLASSIFY))

        long, shorter = ask(model, CLASSIFY, {"text": LONG}, {"text": LONG[:500]})

        assert long == shorter
        assert model.runner(CLASSIFY).preprocess(CONTRACT.input.model_validate({"text": LONG})).cost == 1


SPECIAL = "The end </s> is not <s> the </s></s> end."


class TestInference:
    def test_equals_the_pipeline_with_one_class_and_with_many(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        folder = tiny_text("nli", window=512)
        model = open_model(folder_entry(folder, CHOOSE))
        text = pieces()[3]

        with pipeline(CHOOSE, folder) as wanted:
            for classes in (["a mill"], [f"number {index}" for index in range(40)]):
                for multi_label in (False, True):
                    found = wanted(text, classes, multi_label=multi_label)
                    scores = dict(zip(found["labels"], found["scores"], strict=True))
                    item = {"text": text, "classes": classes, "config": {"multi_label": multi_label}}
                    (got,) = ask(model, CHOOSE, item)
                    assert got["probabilities"] == pytest.approx([scores[name] for name in classes], abs=1e-4)

    def test_a_long_text_is_cut_off_and_the_class_is_not(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("nli"), CHOOSE))
        items = [{"text": text, "classes": ["a mill", "the weather"]} for text in (LONG, LONG[:400], "a")]

        long, shorter, word = ask(model, CHOOSE, *items)

        assert long == shorter
        assert long["probabilities"][0] != pytest.approx(long["probabilities"][1], abs=1e-3)
        assert long != word

    def test_a_class_that_fills_the_window_is_refused_by_its_number(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("nli"), CHOOSE))

        # The spelling of a special token counts as text.
        for name in ("long " * 99, "</s>" * 30):
            error = refusal(model, CHOOSE, {"text": "A mill.", "classes": ["short", name]})

            assert error.fields[0].field == "classes.1"
            assert "window of 64 tokens" in error.message

    def test_end_tokens_in_the_text_are_text_and_harm_no_neighbour(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("nli"), CHOOSE))
        items = [{"text": text, "classes": ["a mill", "</s>"]} for text in ("A mill.", SPECIAL)]

        together = ask(model, CHOOSE, *items)

        for alone, item in zip(together, items, strict=True):
            (again,) = ask(model, CHOOSE, item)
            assert alone["probabilities"] == pytest.approx(again["probabilities"], abs=1e-4)

    def test_a_model_of_another_kind_does_not_load(
        self, context_of: Callable[..., LoadContext], tiny_text: Callable[..., Path]
    ) -> None:
        with pytest.raises(ModelmillError, match="natural language inference") as caught:
            LoadedModel(context_of(folder_entry(tiny_text("classifier"), CHOOSE))).load()

        assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED

    def test_its_weights_also_classify(self, open_model: OpenModel, tiny_text: Callable[..., Path]) -> None:
        entry = folder_entry(tiny_text("nli"), CHOOSE).model_copy(update={"tasks": (CHOOSE, CLASSIFY)})
        model = open_model(entry)

        (answer,) = ask(model, CLASSIFY, {"text": "A mill."})

        assert {part["label"] for part in answer["results"]} == {"contradiction", "neutral", "entailment"}
        assert model.runner(CHOOSE).weights is model.runner(CLASSIFY).weights

    def test_two_tasks_take_turns_with_the_tokenizer(
        self, context_of: Callable[..., LoadContext], tiny_text: Callable[..., Path]
    ) -> None:
        """One thread counts tokens without truncation, on the tokenizer that cuts texts for the other."""
        entry = folder_entry(tiny_text("nli"), CHOOSE).model_copy(update={"tasks": (CHOOSE, CLASSIFY)})
        items = {
            CHOOSE: {"text": "A mill.", "classes": ["a mill"]},
            CLASSIFY: {"text": LONG[:500]},
        }
        with LoadedModel(context_of(entry)).load() as model, ThreadPoolExecutor(2) as pool:
            weights = model.runner(CHOOSE).weights
            weights.tokenizer = watched = Watched(weights.tokenizer)

            def prepared(task: str) -> Any:
                return model.runner(task).preprocess(find_task(task).input.model_validate(items[task]))

            chosen, classified = pool.map(prepared, items)

        assert not watched.met.is_set()
        assert len(chosen.data) == 1
        assert len(classified.data["input_ids"]) == 64


@pytest.mark.parametrize("name", ["distilbert-sst2", "bart-large-mnli", "bert-base-ner", "distilbert-squad"])
def test_catalogued_models_are_found_by_their_hub_ids(name: str) -> None:
    entry = Catalogue.load()[name]

    assert entry.source is not None
    assert entry.aliases == (entry.source.hub,)
