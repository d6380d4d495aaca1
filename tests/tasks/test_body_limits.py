"""How many values a body may hold, which is known before the body is parsed."""

from __future__ import annotations

import json
from typing import Any

import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_tasks.body_limits import MAX_ELEMENTS, MAX_KEYS, check_body, json_size
from modelmill_tasks.contract import MAX_ITEMS, Task
from modelmill_tasks.registry import all_tasks, find_task
from modelmill_tasks.shared.fields import MAX_CLASSES
from modelmill_tasks.table_question_answering import MAX_COLUMNS, MAX_ROWS
from tests.support.exhaustive import exhaustive

MIB = 1024 * 1024


def is_taken(body: bytes | str, most: int = 1000) -> bool:
    try:
        check_body(body, most)
    except ModelmillError as error:
        return error.code is not ErrorCode.INVALID_INPUT
    return True


def numbers(count: int, value: str = "1") -> str:
    return "[" + ",".join([value] * count) + "]"


@pytest.mark.parametrize("value", ["1", "[]", "{}", '""', '","', "null", "[[[]]]"])
def test_values_are_counted_wherever_they_are(value: str) -> None:
    for around in ('{"a": %s}', '{"a": {"b": [%s]}}', "%s"):
        assert is_taken(around % numbers(900, value))
        assert not is_taken(around % numbers(1_000 + MAX_KEYS + 1, value))


def test_depth_counts_as_values_do() -> None:
    assert is_taken("[" * 100 + "]" * 100)
    assert not is_taken("[" * MIB)
    assert not is_taken('{"a":' * 20_000 + '{"a":' * 40_000)


def test_what_is_inside_of_strings_does_not_count() -> None:
    for text in (",", "[{,", '\\",', "\\\\,", '\\\\\\",[', "\\n,", "\\u002c,"):
        assert is_taken('{"text": "%s"}' % (text * 100_000))
    # A backslash at a string's end does not hide the values behind it.
    behind = f', "a": {numbers(60_000)}}}'
    assert not is_taken('{"text": "' + "\\\\" * 101 + '"' + behind)
    assert not is_taken('{"text": "' + "," * 60_000 + '\\""' + behind)


def test_strings_without_anything_between_them_are_values_too() -> None:
    assert not is_taken('""' * MIB + "," * 60_000)


@pytest.mark.parametrize(
    "body",
    [
        b'"' + b"\\" * 4 * MIB,
        b'\\"' * 2 * MIB + b"," * 60_000,
        b'" ' * 2 * MIB + b":" * 60_000,
        (b'"' + b" " * 1000) * 4000 + b":" * 60_000,
        exhaustive(b'"a":' * MIB),
    ],
    ids=range(5),
)
def test_any_bytes_are_counted_and_none_raises_another_error(body: bytes) -> None:
    is_taken(body)
    is_taken(body.decode())


def test_a_lone_surrogate_is_counted() -> None:
    assert is_taken('{"text": "\ud800"}')


def test_the_largest_bodies_that_tasks_allow_are_taken() -> None:
    classes = find_task("zero-shot-image-classification")
    assert classes._most_elements[True] >= MAX_ITEMS * (MAX_CLASSES + 1)
    table = find_task("table-question-answering")
    assert table._most_elements[False] >= MAX_COLUMNS * (MAX_ROWS + 1)
    assert max(max(task._most_elements) for task in all_tasks().values()) <= MAX_ELEMENTS


def test_a_table_of_the_largest_size_is_read() -> None:
    table = {f"column {index}": ["1"] * MAX_ROWS for index in range(MAX_COLUMNS)}

    parsed: Any = find_task("table-question-answering").parse(
        json.dumps({"query": "How many?", "table": table})
    )

    assert len(parsed.table) == MAX_COLUMNS
    assert {len(column) for column in parsed.table.values()} == {MAX_ROWS}


@pytest.mark.parametrize("task", all_tasks().values(), ids=lambda task: task.name)
def test_the_examples_fit(task: Task) -> None:
    plain, batched = task._most_elements
    check_body(json.dumps(task.example.input), plain)
    many = {
        name: [value] * MAX_ITEMS if name in task.batched_fields else value
        for name, value in task.example.input.items()
        if name in task.batched_fields or not isinstance(value, str) or len(value) < 1000
    }
    # The limit counts values only, so the media need not be there.
    check_body(
        json.dumps({k: ["x"] * len(v) if isinstance(v, list) else v for k, v in many.items()}), batched
    )


def test_a_task_without_lists_takes_few_values() -> None:
    assert find_task("text-embedding")._most_elements[False] < 5_000


def test_many_wrong_values_are_one_short_error() -> None:
    body = json.dumps({"input": {"a": 1}, "config": {}, **{f"k{index}": 1 for index in range(49_000)}})

    with pytest.raises(ModelmillError) as caught:
        find_task("custom").parse(body)
    assert len(caught.value.fields) == 20

    table = {"query": "a", "table": {f"c{index}": [None] * 9_000 for index in range(9)}}
    with pytest.raises(ModelmillError) as caught:
        find_task("table-question-answering").parse(json.dumps(table))
    assert caught.value.message.startswith("The body holds 81000 values that are not valid")


@pytest.mark.parametrize(
    "value",
    [{}, {"a": 1}, {"a": [1, 2, 3]}, {"ä": "ö"}, {"a": None, "b": [True, 1.5, {"c": []}]}, {"a": "x" * 900}],
)
def test_the_estimate_of_a_size_is_never_over_the_size(value: Any) -> None:
    size = len(json.dumps(value, separators=(",", ":")).encode())

    assert json_size(value, 10_000) <= size
    assert json_size({"a": [value] * 5_000}, 4_096) > 4_096


@pytest.mark.parametrize(
    ("number", "is_valid"),
    [
        ("1" * 4_000, True),
        ("1" * 5_000, False),
        ("1" * MIB, False),
        ("0." + "1" * MIB, True),
        ("1e99999", False),
    ],
    ids=["long", "too long", "very long", "fraction", "infinite"],
)
def test_long_numbers_are_read_or_refused(number: str, is_valid: bool) -> None:
    body = f'{{"input": {number}}}'
    if is_valid:
        find_task("custom").parse(body)
    else:
        with pytest.raises(ModelmillError, match="number"):
            find_task("custom").parse(body)
