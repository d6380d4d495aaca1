"""The OpenAPI document: each task's real schema, and examples that work when pasted."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import httpx
import pytest

from modelmill.settings import Settings
from modelmill_api.app import create_app
from modelmill_tasks.contract import Task
from modelmill_tasks.registry import all_tasks
from modelmill_tasks.shared.examples import CAT

TASKS = list(all_tasks().values())


def resolve(document: dict[str, Any], reference: str) -> dict[str, Any]:
    node: Any = document
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return dict(node)


def references(node: Any) -> list[str]:
    if isinstance(node, dict):
        own = [node["$ref"]] if isinstance(node.get("$ref"), str) else []
        return own + [reference for value in node.values() for reference in references(value)]
    return [reference for value in node for reference in references(value)] if isinstance(node, list) else []


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    """The document, made once."""
    made: dict[str, Any] = create_app(Settings()).openapi()
    return made


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_each_task_shows_its_own_fields(document: dict[str, Any], task: Task) -> None:
    for part, model in (("", task.input), ("/batched", task.batched_input)):
        operation = document["paths"][f"/api/tasks/{task.name}{part}/{{model}}/jobs"]["post"]
        content = operation["requestBody"]["content"]["application/json"]
        schema = resolve(document, content["schema"]["$ref"])
        assert schema["properties"].keys() == model.model_fields.keys()
        assert schema["additionalProperties"] is False
        for name in task.batched_fields:
            if part:
                assert schema["properties"][name]["type"] == "array", f"{name} is a list"
        result = document["paths"][f"/api/tasks/{task.name}{part}/jobs/{{id}}"]["get"]["responses"]["200"]
        assert "result" in str(result["content"]["application/json"]["schema"])


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_example_of_each_task_works_when_pasted(
    api: httpx.Client, document: dict[str, Any], task: Task
) -> None:
    for part in ("", "/batched"):
        operation = document["paths"][f"/api/tasks/{task.name}{part}/{{model}}/jobs"]["post"]
        example = operation["requestBody"]["content"]["application/json"]["example"]
        response = api.post(f"/api/tasks/{task.name}{part}/{task.example.model}/jobs", json=example)
        assert response.status_code == 202, response.text


def test_every_reference_in_the_document_leads_somewhere(api: httpx.Client) -> None:
    document = api.get("/openapi.json").json()
    assert document["paths"]
    for reference in references(document):
        assert resolve(document, reference)
    assert "HTTPValidationError" not in str(document)


def test_head_is_answered_wherever_get_is(api: httpx.Client, document: dict[str, Any]) -> None:
    body = {"image": CAT, "classes": ["cat"]}
    path = api.post("/api/tasks/zero-shot-image-classification/noop/jobs", json=body).headers["location"]
    plain = [
        path for path, operations in document["paths"].items() if "get" in operations and "{" not in path
    ]
    assert {"/health/live", "/health/ready", "/api/tasks"} <= set(plain)
    for address in (*plain, "/docs", "/openapi.json", "/api/models/noop/status", path, "/api/jobs/none"):
        got, head = api.get(address), api.head(address)
        assert (head.status_code, head.content) == (got.status_code, b""), address
        assert head.headers["content-type"] == got.headers["content-type"]
    # HEAD of a file reads less than GET, so it has a route and an entry of its own.
    documented = [path for path, operations in document["paths"].items() if "head" in operations]
    assert documented == ["/api/files/{id}"]
    assert 'method="HEAD",route="/api/tasks",status="200"' in api.get("/metrics").text


def test_head_is_not_answered_where_get_is_not_or_never_ends(api: httpx.Client) -> None:
    for address, allowed in (
        ("/api/jobs/none/events", "GET"),
        ("/api/tasks/text-embedding/jobs/none/events", "GET"),
        ("/api/models/noop/start", "POST"),
    ):
        response = api.head(address)
        assert (response.status_code, response.headers["allow"]) == (405, allowed)
    assert api.post("/api/tasks").headers["allow"] == "GET, HEAD"


def test_the_documentation_page_needs_no_other_server(api: httpx.Client) -> None:
    page = api.get("/docs").text
    assert "swagger" in page.lower()
    assert "https://" not in page
    assert api.get("/static-offline-docs/swagger-ui-bundle.js").status_code == 200


def test_importing_the_api_imports_no_runtime() -> None:
    code = (
        "import sys, modelmill_api.app; "
        "names = ('torch', 'transformers', 'onnxruntime', 'numpy', "
        "'modelmill_backends', 'modelmill_worker'); "
        "print([m for m in names "
        "if any(n == m or n.startswith(m + '.') for n in sys.modules)])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_importing_the_api_reads_neither_settings_nor_plugins() -> None:
    code = (
        "import importlib.metadata as metadata\n"
        "found, asked = metadata.entry_points, []\n"
        "metadata.entry_points = lambda **query: (asked.append(str(query.get('group'))), found(**query))[1]\n"
        "from modelmill_api.app import create_app\n"
        "assert not [group for group in asked if group.startswith('modelmill')], asked\n"
        "create_app()"
    )
    environment = os.environ | {"MODELMILL_PORT": "none"}

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)

    assert done.returncode == 2
    assert "MODELMILL_PORT" in done.stderr


def test_the_api_stays_small_in_memory() -> None:
    code = (
        "import psutil\n"
        "from modelmill_api.app import create_app\n"
        "from modelmill_tasks.registry import all_tasks\n"
        "create_app().openapi()\n"
        "[t.parse(__import__('json').dumps(t.example.input)) for t in all_tasks().values()]\n"
        "print(psutil.Process().memory_info().rss)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 150 * 1024 * 1024
