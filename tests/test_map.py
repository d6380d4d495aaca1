"""The map of the code names every module, and no page names a file that is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.paths import REPOSITORY

DOCS = REPOSITORY / "docs"
MAP = DOCS / "architecture" / "map.md"
FOLDERS = ("api", "backends", "cli", "tasks", "worker")
PACKAGES = {
    "modelmill": REPOSITORY / "modelmill",
    **{f"modelmill_{name}": REPOSITORY / name / f"modelmill_{name}" for name in FOLDERS},
}
TOP = "|".join((*FOLDERS, "benchmarks", "deploy", "docs", "examples", "modelmill", "tests", "tools"))
IN_TREE = re.compile(rf"`((?:{TOP})/[\w./-]+)`")
TUTORIALS = {"add-a-task.md", "plugins.md"}
"""Pages whose reader creates the files that they name."""
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    *(page for page in sorted(DOCS.rglob("*.md")) if page.name not in TUTORIALS),
]
TASK, RUNTIME = "<task>", "<runtime>"
"""In the map, names that stand for each task's file and for each folder of ``modelmill_backends``."""


def sections(text: str) -> dict[str, set[str]]:
    """The files that each section of the map names, by the package in its heading."""
    parts = re.split(r"^## `([\w/]+)/`$", text, flags=re.MULTILINE)
    return {
        Path(folder).name: set(re.findall(r"`([\w./*<>-]+\.(?:py|lua|toml))`", section))
        for folder, section in zip(parts[1::2], parts[2::2], strict=True)
    }


def modules(package: str) -> set[str]:
    """The modules and Lua scripts of a package, relative to its folder."""
    folder = PACKAGES[package]
    files = {path for pattern in ("*.py", "*.lua") for path in folder.rglob(pattern)}
    return {path.relative_to(folder).as_posix() for path in files if path.name != "__init__.py"}


def task_files() -> set[str]:
    folder = PACKAGES["modelmill_tasks"]
    return {
        path.stem for path in folder.glob("*.py") if re.search(r"^TASK\b", path.read_text(), re.MULTILINE)
    }


def spelled_out(names: set[str]) -> Iterator[str]:
    """The names, with those of all runtimes and tasks in the place of ``<runtime>`` and ``<task>``."""
    for name in names:
        if RUNTIME in name:
            folders = {path.name for path in PACKAGES["modelmill_backends"].iterdir() if path.is_dir()}
            yield from spelled_out({name.replace(RUNTIME, folder) for folder in folders})
        elif TASK in name:
            yield from (name.replace(TASK, task) for task in task_files())
        else:
            yield name


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_names_every_module(package: str) -> None:
    named = set(spelled_out(sections(MAP.read_text())[package]))

    missing = sorted(modules(package) - named)

    assert not missing, f"add these to docs/architecture/map.md, section {package}: {', '.join(missing)}"


def test_a_new_task_and_its_runner_need_no_line_in_the_map() -> None:
    named = sections(MAP.read_text())

    assert f"{TASK}.py" in named["modelmill_tasks"]
    assert f"{RUNTIME}/{TASK}.py" in named["modelmill_backends"]


@pytest.mark.parametrize("package", PACKAGES)
def test_the_map_names_no_file_that_is_gone(package: str) -> None:
    named = sections(MAP.read_text())[package]

    gone = sorted(name for name in named if TASK not in name and not (PACKAGES[package] / name).is_file())

    assert not gone, f"take these out of docs/architecture/map.md, section {package}: {', '.join(gone)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(REPOSITORY).as_posix())
def test_files_that_a_page_names_are_there(page: Path) -> None:
    named = set(IN_TREE.findall(page.read_text()))

    gone = sorted(name for name in named if not (REPOSITORY / name).exists())

    assert not gone, f"{page.relative_to(REPOSITORY)} names files that do not exist: {', '.join(gone)}"
