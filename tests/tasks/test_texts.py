"""The contracts of the tasks on texts: which requests they refuse, and which field the error names."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_tasks.registry import find_task

TEXT = {"text": "A mill."}
BAD = [
    ("text-classification", {}, "text"),
    ("text-classification", {"text": ""}, "text"),
    ("text-classification", {"text": "x" * 1_000_001}, "text"),
    ("text-classification", TEXT | {"config": {"top_k": 0}}, "config.top_k"),
    ("text-classification", TEXT | {"config": {"topk": 1}}, "config.topk"),
    ("zero-shot-classification", TEXT, "classes"),
    ("zero-shot-classification", TEXT | {"classes": []}, "classes"),
    ("zero-shot-classification", TEXT | {"classes": ["a", " "]}, "classes.1"),
    (
        "zero-shot-classification",
        TEXT | {"classes": ["a"], "config": {"hypothesis_template": "This."}},
        "config.hypothesis_template",
    ),
    (
        "token-classification",
        TEXT | {"config": {"aggregation_strategy": "best"}},
        "config.aggregation_strategy",
    ),
    ("fill-mask", {"text": 5}, "text"),
    ("fill-mask", TEXT | {"config": {"top_k": 1001}}, "config.top_k"),
    ("question-answering", {"context": "A mill."}, "question"),
    ("question-answering", {"question": "Who?", "context": ""}, "context"),
    ("question-answering", {"question": "Who?", "prev_q": ["What?"]}, "prev_a"),
    ("question-answering", {"question": "Who?", "prev_a": ["That."]}, "prev_a"),
    ("question-answering", {"question": "Who?", "prev_q": ["a"] * 101, "prev_a": ["a"] * 101}, "prev_q"),
    (
        "question-answering",
        {"question": "Who?", "config": {"max_answer_length": 0}},
        "config.max_answer_length",
    ),
    ("table-question-answering", {"query": "Who?"}, "table"),
    ("table-question-answering", {"query": "Who?", "table": {}}, "table"),
    ("table-question-answering", {"query": "Who?", "table": {"a": []}}, "table.a"),
    ("table-question-answering", {"query": "Who?", "table": {"a": ["1"], "b": ["1", "2"]}}, "table"),
    ("table-question-answering", {"query": "Who?", "table": {"a": [None]}}, "table.a.0"),
    ("table-question-answering", {"query": "Who?", "table": {"a": [True]}}, "table.a.0"),
    ("table-question-answering", {"query": "Who?", "table": {"a": ["x" * 1001]}}, "table.a.0"),
    (
        "table-question-answering",
        {"query": "Who?", "table": {str(index): ["1"] for index in range(101)}},
        "table",
    ),
    (
        "table-question-answering",
        {"query": "Who?", "table": {"a": ["x" * 1000] * 1001}},
        "table",
    ),
    ("sentence-similarity", {"source_sentence": "A mill."}, "sentences"),
    ("sentence-similarity", {"source_sentence": "A mill.", "sentences": []}, "sentences"),
    ("sentence-similarity", {"source_sentence": "A mill.", "sentences": ["a", ""]}, "sentences.1"),
]


@pytest.mark.parametrize(("task", "body", "field"), BAD)
def test_a_bad_body_is_refused_and_its_field_named(task: str, body: dict[str, Any], field: str) -> None:
    with pytest.raises(ModelmillError) as caught:
        find_task(task).parse(json.dumps(body))

    assert caught.value.code is ErrorCode.INVALID_INPUT
    assert caught.value.fields[0].field == field


def test_an_unequal_history_says_by_how_much() -> None:
    with pytest.raises(ModelmillError, match="prev_a: has 1 values, but prev_q has 2"):
        find_task("question-answering").parse(
            json.dumps({"question": "Who?", "prev_q": ["a", "b"], "prev_a": ["c"]})
        )


def test_an_unequal_table_says_how_long_its_columns_are() -> None:
    with pytest.raises(ModelmillError, match="they have 1 to 2 cells"):
        find_task("table-question-answering").parse(
            json.dumps({"query": ["Who?"], "table": {"a": ["1"], "b": ["1", "2"]}}), batched=True
        )


def test_numbers_in_a_table_become_texts() -> None:
    request: Any = find_task("table-question-answering").parse(
        json.dumps({"query": "Who?", "table": {"a": [1, 2.5, "three", -4]}})
    )

    assert request.table == {"a": ["1", "2.5", "three", "-4"]}


def test_a_batched_job_has_one_table_or_one_a_query() -> None:
    task = find_task("table-question-answering")
    one, other = {"a": ["1"]}, {"b": ["2", "3"]}

    for table, wanted in ((one, [one, one]), ([one, other], [one, other])):
        items: list[Any] = list(
            task.items(task.parse(json.dumps({"query": ["x", "y"], "table": table}), batched=True))
        )
        assert [item.table for item in items] == wanted


def test_a_batched_job_asks_many_questions_of_one_text_or_each_of_its_own() -> None:
    task = find_task("question-answering")

    for context, wanted in (("A mill.", ["A mill."] * 2), (["A mill.", None], ["A mill.", None])):
        items: list[Any] = list(
            task.items(task.parse(json.dumps({"question": ["x", "y"], "context": context}), batched=True))
        )
        assert [item.context for item in items] == wanted


def test_a_batched_job_compares_with_one_list_or_one_a_source() -> None:
    task = find_task("sentence-similarity")

    for sentences, wanted in ((["a"], [["a"], ["a"]]), ([["a"], ["b", "c"]], [["a"], ["b", "c"]])):
        body = {"source_sentence": ["x", "y"], "sentences": sentences}
        items: list[Any] = list(task.items(task.parse(json.dumps(body), batched=True)))
        assert [item.sentences for item in items] == wanted


def test_the_strategies_are_the_catalogues() -> None:
    schema = find_task("token-classification").input.model_json_schema()

    assert schema["$defs"]["AggregationStrategy"]["enum"] == ["none", "simple", "first", "average", "max"]
