"""README and docs: every command and example in them runs, and every file they name is there."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest

from modelmill.catalogue import Catalogue, read_models_file
from modelmill.settings import ENV_PREFIX, Settings
from tests.support.exhaustive import exhaustive
from tests.support.paths import REPOSITORY
from tests.support.system import Up
from tools.readme import models_table, tasks_table, with_tables
from tools.task_pages import built_in_tasks, example_files, index
from tools.task_pages import page as page_of

PAGES = sorted(
    [REPOSITORY / "README.md", *(REPOSITORY / "docs").rglob("*.md"), *(REPOSITORY / "deploy").glob("*.md")]
)

ELSEWHERE = {
    # Commands that install, or that start something and stay. The test named here shows what they do.
    "make install": "the environment that runs this",
    "make demo": "tests/e2e/test_demo.py; the whole verb in a clean clone",
    "make test": "this very run",
    "make chaos": "tests/chaos/test_soak.py, for seconds; the whole verb takes minutes",
    "make bench": "tests/benchmarks/test_sections.py, for seconds; the whole verb takes half an hour",
    "python -m benchmarks.compare ../modelmill-before": "tests/benchmarks/test_sections.py",
    "source .venv/bin/activate": "the interpreter that runs this",
    "modelmill up": "tests/e2e/test_up.py",
    "modelmill up --models-file models.toml": "tests/e2e/test_up.py",
    "export MODELMILL_REDIS_URL=redis://:password@redis.internal:6379/0": "tests/worker/test_node.py",
    "modelmill api --host 127.0.0.1 --port 8000": "tests/e2e/test_procfile.py",
    "modelmill worker --devices all": "tests/e2e/test_procfile.py",
    "PYTHONPATH=. modelmill up --models-file models.toml": "tests/e2e/test_plugin.py",
    "curl -s http://127.0.0.1:8000/api/tasks/custom/shorten/jobs -H 'Prefer: wait=20' "
    "-H 'Content-Type: application/json' "
    """-d '{"input": "It was a long night.", "config": {"length": 6}}'""": "tests/e2e/test_plugin.py",
    "pip install ./examples/modelmill-readability": "tests/e2e/test_plugin.py",
    "modelmill check modelmill-readability": "tests/e2e/test_plugin.py",
    "modelmill keys create app --lanes interactive,normal --max-jobs 1000 "
    "--jobs-per-minute 600": "tests/e2e/test_keys.py",
    "modelmill keys create operator --admin": "tests/e2e/test_keys.py",
    "modelmill keys list": "tests/e2e/test_keys.py",
    "modelmill keys revoke app": "tests/e2e/test_keys.py",
    'modelmill submit readability flesch-english --text "The cat sat on the mat." --wait': "test_plugin.py",
}


def blocks(page: Path, *languages: str) -> list[str]:
    found = re.findall(r"^```(\w+)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [text for language, text in found if language in languages]


TASKS = built_in_tasks()
WALK = REPOSITORY / "docs" / "add-a-task.md"
"""Its steps build on each other: ``test_add_a_task.py`` runs them in their order."""
REGISTERING = ("plugins.md",)
"""Pages whose Python code defines tasks and runners: it runs in a process of its own."""
IN_EVERY_RUN = (
    "automatic-speech-recognition",
    "custom",
    "text-classification",
    "zero-shot-image-classification",
)
"""Pages of tasks whose examples also run in `make test`. All pages of tasks come from one template, and
``test_tasks.py`` sends a job to each task."""


def runnable() -> Iterator[Any]:
    for page in PAGES:
        if page == WALK or not blocks(page, "bash", "python"):
            continue
        left_out = page.stem in TASKS and page.stem not in IN_EVERY_RUN
        yield exhaustive(page, id=page.name) if left_out else pytest.param(page, id=page.name)


@pytest.mark.parametrize("page", list(runnable()))
def test_examples_run_as_they_are_written(
    page: Path, up: Up, tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "modelmill").symlink_to(REPOSITORY / "modelmill")
    if page.stem in TASKS:
        for name, data in example_files(TASKS[page.stem]).items():
            (tmp_path / name).write_bytes(data)
    monkeypatch.chdir(tmp_path)
    for variable, value in {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "MODELMILL_URL": up.url,
        "MODELMILL_CACHE_DIR": str(cache_dir),
        "COLUMNS": "160",
        "PYTHONSAFEPATH": "1",
    }.items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setattr("modelmill_backends.loader.get_settings", Settings)

    found = re.findall(r"^```(bash|python)\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    for language, text in found:
        # The server of the tests has a port of its own; nothing else is changed.
        text = text.replace("http://127.0.0.1:8000", up.url)
        if language == "bash":
            printed = run_command("bash", "-euo", "pipefail", "-c", text)
        elif page.name in REGISTERING:
            printed = run_command(sys.executable, "-c", text)
        else:
            printed = run_here(text)
        assert '"retryable"' not in printed, f"{text}\n{printed}"


def run_command(*command: str) -> str:
    """Runs a command, which must succeed. Returns what it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, f"{command[-1]}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def run_here(text: str) -> str:
    """Runs Python code in this process: another one imports PyTorch again, which takes seconds."""
    printed = io.StringIO()
    names: dict[str, Any] = {"__name__": "__main__"}
    with redirect_stdout(printed), warnings.catch_warnings():
        # As in a process of its own: a short example may leave a file to the interpreter to close.
        warnings.simplefilter("ignore", ResourceWarning)
        exec(compile(text, "<docs>", "exec"), names)
        names.clear()
    return printed.getvalue()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_not_run_here_are_seen_elsewhere(page: Path) -> None:
    if page.parent.name == "deploy":
        pytest.skip("deployment commands need hosts of their own; its files are checked in tests/deploy")
    for block in blocks(page, "console"):
        for line in filter(None, block.splitlines()):
            assert line in ELSEWHERE, f"{page.name}: {line!r} runs in no test"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_models_files_in_the_docs_are_valid(page: Path, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page, "toml")):
        file = tmp_path / f"{number}.toml"
        file.write_text(block)
        assert read_models_file(file)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} names {target}"


def test_the_tables_of_the_readme_say_what_contracts_and_catalogue_say() -> None:
    text = (REPOSITORY / "README.md").read_text()
    tables = {"tasks": tasks_table(TASKS), "models": models_table(Catalogue.load())}

    assert with_tables(text, tables) == text, "run: make docs"
    for name in TASKS:
        assert f"[{name}](docs/tasks/{name}.md)" in text


def test_the_pages_of_the_tasks_say_what_their_contracts_say() -> None:
    folder, catalogue = REPOSITORY / "docs" / "tasks", Catalogue.load()
    for name, task in TASKS.items():
        assert (folder / f"{name}.md").read_text() == page_of(task, catalogue), "run: make docs"
    assert (folder / "README.md").read_text() == index(TASKS), "run: make docs"
    assert {file.stem for file in folder.glob("*.md")} == {*TASKS, "README"}


def test_the_settings_page_lists_every_setting_with_its_default() -> None:
    text = (REPOSITORY / "docs" / "settings.md").read_text()
    for name, field in Settings.model_fields.items():
        row = f"| `{ENV_PREFIX}{name.upper()}` | {field.description or ''} |"
        assert row in text, row
