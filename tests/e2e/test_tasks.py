"""Every task through the whole system: HTTP, Valkey, a Celery worker, a model, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelmill.settings import Settings
from modelmill_backends.conformance import LoadedSpecimen, difference, samples_of
from modelmill_backends.conformance.samples import as_batched, truncated
from tests.support.specimen_models import SpecimenModels, specimen_of
from tests.support.system import Up
from tools.task_pages import built_in_tasks

TASKS = built_in_tasks()
ITEMS = 4

Expected = Callable[[str], tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]]


@pytest.fixture(scope="module")
def http(up: Up) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{up.url}/api/tasks", timeout=170) as client:
        yield client


@pytest.fixture
def expected(specimen_models: SpecimenModels, cache_dir: Path) -> Expected:
    """Inputs for a task, and the answers of an independent path. For real weights, that is this process."""

    def ask(name: str) -> tuple[Sequence[Mapping[str, Any]], Sequence[Mapping[str, Any]]]:
        specimen = specimen_of(name)
        inputs = list(specimen.inputs or samples_of(TASKS[name], ITEMS))[:ITEMS]
        if specimen.reference is not None:
            return inputs, specimen.reference(specimen_models.folder_of(specimen), inputs)
        bench = LoadedSpecimen(specimen, specimen_models.folder_of(specimen), Settings(cache_dir=cache_dir))
        try:
            return inputs, [bench.ask(item) for item in inputs]
        finally:
            bench.close()

    return ask


def run(http: httpx.Client, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a job, when it has ended."""
    answer = http.post(path, json=body, headers={"Prefer": "wait=60"})
    assert answer.status_code in (200, 202), answer.text
    while answer.json()["status"] in ("starting", "running"):
        task = path.removesuffix("/jobs").rpartition("/")[0]
        answer = http.get(f"{task}/jobs/{answer.json()['id']}", headers={"Prefer": "wait=60"})
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize("name", TASKS)
def test_a_task_is_answered_as_by_an_independent_path(
    name: str, http: httpx.Client, expected: Expected
) -> None:
    inputs, answers = expected(name)
    specimen = specimen_of(name)

    single = run(http, f"{name}/{specimen.name}/jobs", inputs[0])
    batched = run(http, f"{name}/batched/{specimen.name}/jobs", as_batched(TASKS[name], inputs))

    assert (single["status"], batched["status"]) == ("complete", "complete"), (single, batched)
    assert difference(single["result"], answers[0], specimen.tolerance) is None
    assert difference(batched["result"], answers, specimen.tolerance) is None
    assert (batched["items"], batched["failed_items"]) == (len(inputs), 0)


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.example.real])
def test_the_example_of_a_page_is_what_its_model_answers(name: str, http: httpx.Client) -> None:
    example = TASKS[name].example
    document = run(http, f"{name}/{example.model}/jobs", example.input)
    assert document["status"] == "complete", document
    assert difference(abridged(document["result"], example.output), example.output, 2e-3) is None


def abridged(found: Any, shown: Any) -> Any:
    """As much of each list as the page shows, such as the first numbers of a vector."""
    if isinstance(shown, dict):
        return {key: abridged(value, shown[key]) for key, value in found.items() if key in shown}
    if isinstance(shown, list):
        return [abridged(*pair) for pair in zip(found, shown, strict=False)]
    return found


def bad_input(name: str) -> Mapping[str, Any] | None:
    return specimen_of(name).bad_input or truncated(TASKS[name])


@pytest.mark.parametrize("name", [name for name in TASKS if bad_input(name)])
def test_an_item_that_cannot_be_answered_fails_alone(name: str, http: httpx.Client) -> None:
    specimen = specimen_of(name)
    bad = bad_input(name)
    assert bad is not None
    good = list(specimen.inputs or samples_of(TASKS[name], 2))[:2]

    alone = run(http, f"{name}/{specimen.name}/jobs", bad)
    among = run(
        http, f"{name}/batched/{specimen.name}/jobs", as_batched(TASKS[name], [good[0], bad, good[1]])
    )

    assert alone["status"] == "failed"
    assert alone["error"]["code"] in ("invalid_input", "invalid_media")
    assert (among["status"], among["failed_items"]) == ("complete", 1), among
    assert among["result"][1] == {"error": {key: alone["error"][key] for key in among["result"][1]["error"]}}
    assert not any("error" in among["result"][index] for index in (0, 2))
