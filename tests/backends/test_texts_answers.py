"""Models that answer questions about a text or a table."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import LoadContext
from modelmill_backends.loader import LoadedModel
from tests.fixtures.specimens.texts import answered, looked_up, pieces
from tests.fixtures.tiny_models import tiny_vit
from tests.support.models import OpenModel, folder_entry
from tests.support.texts import LONG, ask, refusal

ANSWER, LOOK_UP = "question-answering", "table-question-answering"
MILL = " ".join(pieces(12))


class TestTexts:
    @pytest.mark.parametrize("config", [{"top_k": 1}, {"top_k": 4}, {"top_k": 2, "max_answer_length": 1}])
    def test_equals_the_plain_computation_over_many_windows(
        self, open_model: OpenModel, tiny_text: Callable[..., Path], config: dict[str, int]
    ) -> None:
        folder = tiny_text("qa")
        items = [
            {"question": "When did Anna come back?", "context": context, "config": config}
            for context in (MILL, "😺😺 " + MILL[:200], "Anna.")
        ]

        for got, wanted in zip(
            ask(open_model(folder_entry(folder, ANSWER)), ANSWER, *items),
            answered(folder, items),
            strict=True,
        ):
            for one, other in zip(got["answers"], wanted["answers"], strict=True):
                assert one == other | {"score": pytest.approx(other["score"], abs=1e-4)}

    def test_answers_are_pieces_of_the_context_best_first_and_once(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("qa"), ANSWER))

        (answer,) = ask(model, ANSWER, {"question": "Who?", "context": MILL, "config": {"top_k": 20}})
        found = answer["answers"]

        assert len(found) == 20
        assert all(part["answer"] == MILL[part["start"] : part["end"]] for part in found)
        assert [part["score"] for part in found] == sorted((p["score"] for p in found), reverse=True)
        assert len({(part["start"], part["end"]) for part in found}) == 20

    def test_answers_are_whole_words(self, open_model: OpenModel, tiny_text: Callable[..., Path]) -> None:
        model = open_model(folder_entry(tiny_text("qa"), ANSWER))
        config = {"top_k": 10, "max_answer_length": 1}

        (answer,) = ask(model, ANSWER, {"question": "Who?", "context": MILL, "config": config})

        for part in answer["answers"]:
            assert not MILL[: part["start"]][-1:].isalpha() or not part["answer"][0].isalpha()
            assert not MILL[part["end"] :][:1].isalpha() or not part["answer"][-1].isalpha()

    def test_a_context_of_100_000_tokens_is_read(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("qa", window=512), ANSWER))
        (prepared,) = (
            model.runner(ANSWER).preprocess(item)
            for item in [open_item({"question": "Who?", "context": LONG})]
        )

        (answer,) = ask(model, ANSWER, {"question": "Who?", "context": LONG})

        assert prepared.cost > 100
        assert answer["answers"][0]["answer"].strip("a ") == ""

    def test_a_long_question_is_cut_off(self, open_model: OpenModel, tiny_text: Callable[..., Path]) -> None:
        model = open_model(folder_entry(tiny_text("qa"), ANSWER))

        long, shorter = ask(
            model,
            ANSWER,
            {"question": LONG, "context": MILL},
            {"question": LONG[:500], "context": MILL},
        )

        assert long == shorter
        assert long["answers"]

    @pytest.mark.parametrize(
        ("more", "field"),
        [
            ({}, "context"),
            ({"context": "   "}, "context"),
            ({"context": MILL, "prev_q": ["Who?"], "prev_a": ["Anna"]}, "prev_q"),
        ],
    )
    def test_what_it_cannot_use_is_refused(
        self, open_model: OpenModel, tiny_text: Callable[..., Path], more: dict[str, Any], field: str
    ) -> None:
        model = open_model(folder_entry(tiny_text("qa"), ANSWER))

        error = refusal(model, ANSWER, {"question": "Who?"} | more)

        assert error.fields[0].field == field


def open_item(item: dict[str, Any]) -> Any:
    from modelmill_tasks.question_answering import TASK

    return TASK.input.model_validate(item)


TREES = {"tree": ["beech", "yew", "oak"], "years": [300, 2000, 800.5]}


class TestTables:
    def test_coordinates_are_the_cells_places(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("tapas"), LOOK_UP))
        queries = ["How old does a yew become?", "Which tree?", "How many trees are there in all?", "Why?"]

        answers = ask(model, LOOK_UP, *({"query": query, "table": TREES} for query in queries))

        columns = [["beech", "yew", "oak"], ["300", "2000", "800.5"]]
        assert any(answer["cells"] for answer in answers)
        for answer in answers:
            assert answer["cells"] == [columns[column][row] for row, column in answer["coordinates"]]
            assert answer["answer"].endswith(", ".join(answer["cells"]))
            assert answer["aggregator"] in ("NONE", "SUM", "AVERAGE", "COUNT")

    def test_the_aggregator_stands_before_the_cells_unless_it_is_none(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("tapas"), LOOK_UP))
        from modelmill_tasks.table_question_answering import samples

        answers = ask(model, LOOK_UP, *samples(5))

        assert {answer["aggregator"] for answer in answers} > {"NONE", "SUM"}
        for answer in answers:
            prefix = "" if answer["aggregator"] == "NONE" else f"{answer['aggregator']} > "
            assert answer["answer"] == prefix + ", ".join(answer["cells"])

    def test_a_model_that_does_not_aggregate_says_so_by_null(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("tapas", aggregates=False), LOOK_UP))

        (answer,) = ask(model, LOOK_UP, {"query": "How old?", "table": TREES})

        assert answer["aggregator"] is None

    def test_rows_that_do_not_fit_are_left_out(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        folder = tiny_text("tapas")
        model = open_model(folder_entry(folder, LOOK_UP))
        table = {"a": [str(row) for row in range(300)], "b": ["mill"] * 300}
        tokens = len(model.runner(LOOK_UP).weights.tokenizer.tokenize("Which?"))
        # The window holds two special tokens, the query, and two cells for the header and for each row.
        read = (128 - 2 - tokens) // 2 - 1
        cut = {name: column[:read] for name, column in table.items()}

        long, shorter = ask(
            model, LOOK_UP, {"query": "Which?", "table": table}, {"query": "Which?", "table": cut}
        )

        assert long == shorter
        assert long["coordinates"]
        # The ranks of numbers run over the rows that are read. The pipeline ranks all, and fails beyond 255.
        (wanted,) = looked_up(folder, [{"query": "Which?", "table": cut}])
        assert [list(place) for place in long["coordinates"]] == wanted["coordinates"]

    def test_rows_beyond_the_models_embeddings_are_left_out(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("tapas", window=512), LOOK_UP))

        (answer,) = ask(model, LOOK_UP, {"query": "Which?", "table": {"a": ["1"] * 10_000}})

        assert all(row < 255 for row, _ in answer["coordinates"])

    def test_long_queries_and_cells_are_cut_off(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("tapas"), LOOK_UP))
        table = {"a": ["mill " * 200, ""], "": ["x" * 1000, "\t\n"]}

        (answer,) = ask(model, LOOK_UP, {"query": LONG, "table": table})

        assert answer["aggregator"]

    def test_too_many_columns_are_refused(
        self, open_model: OpenModel, tiny_text: Callable[..., Path]
    ) -> None:
        model = open_model(folder_entry(tiny_text("tapas"), LOOK_UP))
        table = {f"column {index}": ["1"] for index in range(90)}

        error = refusal(model, LOOK_UP, {"query": "Which?", "table": table})

        assert error.fields[0].field == "table"
        assert "90 columns" in error.message

    def test_a_model_of_another_kind_does_not_load(
        self, context_of: Callable[..., LoadContext], tmp_path: Path
    ) -> None:
        with pytest.raises(ModelmillError) as caught:
            LoadedModel(context_of(folder_entry(tiny_vit(tmp_path), LOOK_UP))).load()

        assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED
