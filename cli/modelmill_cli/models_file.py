"""Checks a models file before a server starts, so that its errors appear at once."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from modelmill.catalogue import Catalogue, ModelEntry, line_of, read_models_file, unknown_name
from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill_tasks.registry import find_task

Problem = tuple[tuple[int | str, ...], str]
"""The place in the entry, and the message."""


def check_models_file(
    path: Path | None,
    *,
    has_runners: bool = False,
    loads: bool = False,
    models: Collection[str] = (),
    tasks: Collection[str] = (),
) -> None:
    """Checks the tasks, runners and folders in a models file. The catalogue's reader does not know these.

    Args:
        path: The file, if there is one.
        has_runners: Whether this machine has the runners. Only then are the backends checked.
        loads: Whether this machine loads models. Only then are their folders checked.
        models: The models that this machine serves; all if empty.
        tasks: The tasks that this machine serves; all if empty.

    Raises:
        ConfigError: an entry cannot work. The message names file, line and similar names.
    """
    if path is None:
        return
    # Read the whole catalogue first: an entry may conflict with others.
    Catalogue.load(path)
    text = path.read_text(encoding="utf-8")
    problems: list[str] = []
    for name, entry in read_models_file(path).items():
        found = list(_task_problems(entry))
        if has_runners and not found:
            found += _runner_problems(entry)
        is_served = (not models or name in models) and (not tasks or not set(tasks).isdisjoint(entry.tasks))
        if loads and is_served:
            found += _folder_problems(entry)
        problems += [
            f"{path}, line {line_of(text, 'models', name, *where)}: model {name!r}: {where[0]}: {message}"
            for where, message in found
        ]
    if problems:
        raise ConfigError("\n".join(problems))


def _task_problems(entry: ModelEntry) -> Iterator[Problem]:
    for task in entry.tasks:
        try:
            find_task(task)
        except ModelmillError as error:
            yield ("tasks",), error.message


def _runner_problems(entry: ModelEntry) -> Iterator[Problem]:
    # Imported here because the API needs no runners. Their modules import a runtime only to load a model.
    from modelmill_backends import registry

    if ":" in entry.runner:
        return  # The operator's own code. It is imported when the model loads.
    for task in entry.tasks:
        try:
            registry.find_runner(entry, task)
        except ModelmillError as error:
            if registry.left_out_plugins:
                # One of them may have this runner. The model's load reports the reason.
                return
            known = {backend: None for backend, _, _ in registry.all_runners()}
            if entry.backend not in known:
                unknown = unknown_name(ErrorCode.MODEL_LOAD_FAILED, "backend", entry.backend, known)
                yield ("backend",), unknown.message
                return
            yield ("tasks",), error.message.removeprefix(f"Model {entry.name}: ")


def _folder_problems(entry: ModelEntry) -> Iterator[Problem]:
    folder = entry.source.folder if entry.source else None
    if folder is not None and not folder.exists():
        yield ("source", "folder"), f"There is no folder {folder}."
