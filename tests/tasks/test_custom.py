from __future__ import annotations

import json
from typing import Any

import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_tasks.contract import TaskInput
from modelmill_tasks.registry import find_task

TASK = find_task("custom")
VALUES = [None, True, 0, -1.5, 10**30, "text", "", [], ["a", ["b"]], {}, {"deep": [{"er": None}]}]


def items(body: Any, *, batched: bool = False) -> list[dict[str, Any]]:
    text = body if isinstance(body, str) else json.dumps(body)
    found: list[TaskInput] = TASK.items(TASK.parse(text, batched=batched))
    return [item.model_dump(include={"input", "config"}) for item in found]


@pytest.mark.parametrize("value", VALUES, ids=json.dumps)
def test_an_input_is_any_json_value(value: Any) -> None:
    assert items({"input": value}) == [{"input": value, "config": {}}]


def test_in_a_batched_job_the_input_is_a_list_of_values() -> None:
    assert [item["input"] for item in items({"input": VALUES}, batched=True)] == VALUES


def test_a_value_that_is_a_list_is_one_item_of_a_plain_job_and_several_of_a_batched_one() -> None:
    assert [item["input"] for item in items({"input": [1, 2]})] == [[1, 2]]
    assert [item["input"] for item in items({"input": [1, 2]}, batched=True)] == [1, 2]
    assert [item["input"] for item in items({"input": [[1, 2]]}, batched=True)] == [[1, 2]]


def test_config_is_any_object_for_all_items_or_one_an_item() -> None:
    config = {"any": {"thing": [1]}, "normalize": None}

    shared = items({"input": [1, 2], "config": config}, batched=True)
    each = items({"input": [1, 2], "config": [config, {}]}, batched=True)

    assert [item["config"] for item in shared] == [config, config]
    assert [item["config"] for item in each] == [config, {}]


def test_a_model_s_further_config_keys_change_nothing_where_every_key_is_taken() -> None:
    wider = TASK.with_config_keys(("anything",))

    assert wider.parse(json.dumps({"input": 1, "config": {"anything": 1, "else": 2}}))


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "input"),
        ({"input": 1, "config": []}, "config"),
        ({"input": 1, "config": None}, "config"),
        ({"input": 1, "config": "x"}, "config"),
        ({"input": 1, "inputs": 2}, "inputs"),
        ('{"input": NaN}', "input"),
        ('{"input": {"a": [1, -Infinity]}}', "input"),
        ('{"input": 1e999}', "input"),
        ('{"input": 1, "config": {"a": NaN}}', "config"),
    ],
)
def test_what_is_wrong_is_named(body: Any, field: str) -> None:
    with pytest.raises(ModelmillError) as caught:
        items(body)

    assert caught.value.code is ErrorCode.INVALID_INPUT
    assert [error.field for error in caught.value.fields] == [field]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"input": 1}, "input"),
        ({"input": {"a": 1}}, "input"),
        ({"input": []}, "input"),
        ({"input": [1, 2], "config": [{}]}, "config"),
        ({"input": [1, 2], "config": [{}, 3]}, "config.1"),
        ('{"input": [1, NaN]}', "input.1"),
    ],
)
def test_what_is_wrong_in_a_batched_job_is_named(body: Any, field: str) -> None:
    with pytest.raises(ModelmillError) as caught:
        items(body, batched=True)

    assert [error.field for error in caught.value.fields] == [field]
