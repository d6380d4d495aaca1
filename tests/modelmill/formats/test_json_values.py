from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from modelmill.formats import json_values as module
from modelmill.formats.encodings import InputError
from modelmill.formats.json_values import Layout, Unreadable, json_values, layout_of


def reading(text: str, size: int) -> Callable[[int], str]:
    pieces = [text[start : start + size] for start in range(0, len(text), size)]
    return lambda _: pieces.pop(0) if pieces else ""


def values(text: str, *, size: int = 1, limit: int = 1000, is_array: bool = False) -> list[Any]:
    found = json_values(reading(text, size), "x.json", limit=limit, is_array=is_array)
    return [value.problem if isinstance(value, Unreadable) else value for value in found]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_values_are_found_in_blocks_of_any_size(size: int) -> None:
    rows: list[Any] = [{"a": 'x]}"\\'}, {"b": [1, {"c": "\\\\"}, []]}, {}, {"d": "\u2028\n日"}, {"e": -1.5e3}]
    array = json.dumps(rows, indent=1)

    assert values(array, size=size, is_array=True) == rows
    assert values("\n".join(json.dumps(row, indent=2) for row in rows), size=size) == rows
    assert values(",\n".join(map(json.dumps, rows)) + ",\n", size=size) == rows
    assert values("".join(map(json.dumps, rows)), size=size) == rows


def test_wrong_values_do_not_spoil_the_others() -> None:
    assert values('{"a": 1} nope {"a": } ] "x" 3', size=2) == [
        {"a": 1},
        *(["is not valid JSON"] * 3),
        "x",
        3,
    ]


def test_a_value_over_the_limit_is_not_kept() -> None:
    text = '[{"a": 1}, {"a": "' + "x" * 5000 + '"}, {"a": 2}]'

    assert values(text, size=100, limit=50, is_array=True) == [{"a": 1}, "is too long", {"a": 2}]


@pytest.mark.parametrize(
    ("text", "is_array", "message"),
    [
        ('[{"a": 1}, {"a": "x', True, "x.json, row 1: ends in the middle of a value"),
        ('[{"a": 1},', True, "x.json, after row 1: the array does not end"),
        ("[", True, "x.json, after row 0: the array does not end"),
        ('[{"a": 1}]\n[', True, "x.json, after row 1: text follows the end of the array"),
        ('{"a": 1}\n{"a": \\', False, "x.json, row 1: ends in the middle of a value"),
    ],
)
def test_a_text_that_ends_too_early_is_refused(text: str, is_array: bool, message: str) -> None:
    with pytest.raises(InputError) as caught:
        values(text, is_array=is_array)

    assert str(caught.value) == message
    assert caught.value.is_cut == ("follows" not in message)


@pytest.mark.parametrize(
    ("head", "layout"),
    [
        ('{"a": 1}\n{"a": 2}\n', Layout.LINES),
        ('{"a": 1},\n{"a": 2},\n', Layout.LINES),
        ('\ufeff\n {"a": 1}\r{"a": 2}', Layout.LINES),
        ("not json\n{}", Layout.LINES),
        ('{"a": 1,\n{"a": 2}\n', Layout.LINES),
        ("[1]\n[2]\n", Layout.LINES),
        ("", Layout.LINES),
        ('{\n "a": 1\n}\n', Layout.VALUES),
        ('{"a": 1,\n "b": 2}\n{"a": 1,\n "b": 2}', Layout.VALUES),
        ('{"a": 1}{"a": 2}', Layout.VALUES),
        ('\n [\n {"a": 1}', Layout.ARRAY),
        ("[]", Layout.ARRAY),
    ],
)
def test_the_layout_is_found(head: str, layout: Layout) -> None:
    assert layout_of(head, is_whole=True) is layout


def test_memory_holds_one_value_and_one_block() -> None:
    blocks = iter([module.BLOCK_CHARACTERS * " ", '{"a":', *["1" * 10] * 100, "}"])
    reader = module._Reader(lambda _: next(blocks, ""), 200)

    assert reader.skip(module._BETWEEN)
    assert reader.value() == (None, True)
    assert sum(map(len, reader._kept)) <= 200
