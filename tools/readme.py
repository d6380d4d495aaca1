"""The README's tables of tasks and of models that need no hub, written from contracts and catalogue.

``python -m tools.readme README.md`` puts them between their markers.
"""

from __future__ import annotations

import re
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

from modelmill.catalogue import Catalogue, ModelEntry
from modelmill_tasks.contract import Task, TaskGroup
from tools.task_pages import built_in_tasks

PYPROJECT = Path(__file__).parent.parent / "pyproject.toml"


def main() -> None:
    """Rewrites the tables of the file that is named."""
    file = Path(sys.argv[1])
    tables = {"tasks": tasks_table(built_in_tasks()), "models": models_table(Catalogue.load())}
    file.write_text(with_tables(file.read_text(encoding="utf-8"), tables), encoding="utf-8")


def with_tables(text: str, tables: Mapping[str, str]) -> str:
    """The text, with each table between its markers: ``<!-- NAME: … -->`` and ``<!-- end of NAME -->``.

    Raises:
        ValueError: the markers of a table are missing.
    """
    for name, table in tables.items():
        markers = re.compile(rf"(<!-- {name}:[^\n]*-->\n).*?(<!-- end of {name} -->)", re.DOTALL)
        begin_and_end = markers.search(text)
        if begin_and_end is None:
            raise ValueError(f"The markers of the table {name!r} are missing.")
        begin, end = begin_and_end.groups()
        text = text.replace(begin_and_end[0], f"{begin}\n{table}\n\n{end}")
    return text


def tasks_table(tasks: Mapping[str, Task]) -> str:
    """The tasks by their groups, each with a link to its page."""
    rows = []
    for group in TaskGroup:
        links = [f"[{name}](docs/tasks/{name}.md)" for name, task in tasks.items() if task.group is group]
        if links:
            rows.append(f"| **{group}** | {' · '.join(links)} |")
    return "\n".join(["| | |", "| --- | --- |", *rows])


def models_table(catalogue: Mapping[str, ModelEntry]) -> str:
    """The models whose weights come as Python packages."""
    rows = [
        f"| `{entry.name}` | {', '.join(entry.tasks)} | {_first_sentence(entry.description)} "
        f"| {_install(entry)} |"
        for entry in catalogue.values()
        if entry.source is not None and entry.source.package is not None
    ]
    head = ["| model | answers | what it is | install also |", "| --- | --- | --- | --- |"]
    return "\n".join([*head, *rows])


def _first_sentence(text: str) -> str:
    return re.split(r"(?<=\.)\s+(?=[A-Z])", text)[0]


def _install(entry: ModelEntry) -> str:
    """What the extra ``standard`` does not bring, as an argument of pip; empty if it brings all."""
    if entry.source is not None and entry.source.install is not None:
        return f"`{entry.source.install}`"
    further = [extra for extra in entry.requires if extra not in _standard_extras()]
    return f"`modelmill[{','.join(further)}]`" if further else ""


def _standard_extras() -> set[str]:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    (standard,) = project["optional-dependencies"]["standard"]
    return set(standard.removeprefix("modelmill[").removesuffix("]").split(","))


if __name__ == "__main__":
    main()
