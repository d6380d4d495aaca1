"""Each task refuses bad input before a job is accepted, over HTTP, and the answer names the field."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from modelmill.settings import Settings
from modelmill_backends.conformance.samples import kind_of
from modelmill_tasks.contract import Task
from tests.support.servers import ApiServer, Valkey
from tools.task_pages import built_in_tasks

TASKS = built_in_tasks()
NO_MEDIA = "data:image/png;base64," + base64.b64encode(b"neither an image nor a sound " * 10).decode()


@pytest.fixture(scope="module")
def api(_valkey: Valkey) -> Iterator[httpx.Client]:
    """One server for all tests: none of these requests is accepted."""
    server = ApiServer(Settings(redis_url=_valkey.url))
    with httpx.Client(base_url=server.url, timeout=30) as client:
        yield client
    server.close()


def refused(api: httpx.Client, task: Task, body: dict[str, Any], batched: bool = False) -> dict[str, Any]:
    part = "batched/" if batched else ""
    answer = api.post(f"/api/tasks/{task.name}/{part}{task.example.model}/jobs", json=body)
    assert answer.status_code == 422, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert len(answer.content) < 4000, "an answer never hands the input back"
    problem: dict[str, Any] = answer.json()
    return problem


def fields_of(problem: dict[str, Any]) -> list[str]:
    return [error["field"] for error in problem["errors"]]


def batched_of(task: Task, kind: str) -> list[str]:
    """The batched fields that take a plain ``text``, an ``image`` or ``audio``."""
    return [name for name in task.batched_fields if kind_of(task, name) == kind]


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if name != "custom"])
def test_an_unknown_key_of_config_is_named(name: str, api: httpx.Client) -> None:
    task = TASKS[name]
    config = dict(task.example.input.get("config", {})) | {"nonsense": 1}
    problem = refused(api, task, task.example.input | {"config": config})
    assert problem["code"] == "invalid_input"
    assert fields_of(problem) == ["config.nonsense"]


@pytest.mark.parametrize("name", TASKS)
def test_an_unknown_field_is_named(name: str, api: httpx.Client) -> None:
    problem = refused(api, TASKS[name], TASKS[name].example.input | {"nonsense": 1})
    assert (problem["code"], fields_of(problem)) == ("invalid_input", ["nonsense"])


@pytest.mark.parametrize("name", TASKS)
def test_a_missing_field_is_named(name: str, api: httpx.Client) -> None:
    task = TASKS[name]
    required = [field for field in task.batched_fields if task.input.model_fields[field].is_required()]
    body = {key: value for key, value in task.example.input.items() if key != required[0]}
    assert required[0] in fields_of(refused(api, task, body))


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if batched_of(task, "text")])
def test_an_empty_text_is_refused(name: str, api: httpx.Client) -> None:
    task = TASKS[name]
    for field in batched_of(task, "text"):
        problem = refused(api, task, task.example.input | {field: ""})
        assert field in fields_of(problem)


@pytest.mark.parametrize("kind", ["image", "audio"])
def test_bytes_that_are_no_media_are_refused_before_they_are_queued(kind: str, api: httpx.Client) -> None:
    found = 0
    for task in TASKS.values():
        for field in batched_of(task, kind):
            problem = refused(api, task, task.example.input | {field: NO_MEDIA})
            assert (problem["code"], fields_of(problem)) == ("invalid_media", [field])
            found += 1
    assert found >= 2


@pytest.mark.parametrize("name", TASKS)
def test_lists_of_different_lengths_are_refused(name: str, api: httpx.Client) -> None:
    task = TASKS[name]
    body = {key: value for key, value in task.example.input.items() if key != "config"}
    given = [field for field in task.batched_fields if field in body]
    body |= {field: [body[field]] * 2 for field in given}
    # One too few configs, or values of another batched field.
    other = given[1] if len(given) > 1 else "config"
    body[other] = body[other][:1] if other != "config" else [{}]
    problem = refused(api, task, body, batched=True)
    assert other in json.dumps(problem)


def test_a_table_with_columns_of_different_lengths_is_refused(api: httpx.Client) -> None:
    task = TASKS["table-question-answering"]
    table = {"tree": ["beech", "yew"], "years": ["300"]}
    problem = refused(api, task, {"query": "How old does a yew become?", "table": table})
    assert fields_of(problem) == ["table"]
    assert "length" in problem["detail"]
