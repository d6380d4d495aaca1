"""Looks at a models file before anything is started that would only stumble over it later."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

from modelmill.catalogue import Catalogue, ModelEntry, line_of, read_models_file, unknown_name
from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill_tasks.registry import find_task

Problem = tuple[tuple[int | str, ...], str]
"""Where in the entry, and what is wrong there."""


def check_models_file(
    path: Path | None,
    *,
    has_runners: bool = False,
    loads: bool = False,
    models: Collection[str] = (),
    tasks: Collection[str] = (),
) -> None:
    """Checks what the catalogue's reader, which knows no tasks and no backends, cannot.

    Args:
        path: The file, if there is one.
        has_runners: Whether this machine is to have the runners, so that it knows the backends.
        loads: Whether models are to be loaded here, so that their folders have to be here.
        models: Those that are served here; all when empty.
        tasks: Those that are answered here; all when empty.

    Raises:
        ConfigError: an entry cannot work; names each with file and line, and the nearest that could be meant.
    """
    if path is None:
        return
    # The whole first: an entry of the file may be at odds with others.
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
    # Only here: who answers HTTP needs no runners. Their modules import no runtime before they load a model.
    from modelmill_backends import registry

    if ":" in entry.runner:
        return  # Code of the operator's own, which is found when the model loads.
    for task in entry.tasks:
        try:
            registry.find_runner(entry, task)
        except ModelmillError as error:
            known = {backend: None for backend, _, _ in registry.all_runners()}
            if entry.backend not in known:
                unknown = unknown_name(ErrorCode.MODEL_LOAD_FAILED, "backend", entry.backend, known)
                yield ("backend",), unknown.message
                return
            yield ("tasks",), error.message.removeprefix(f"Model {entry.name}: ")
        except Exception:
            # A plugin that cannot be imported may bring this very runner: it says so when the model loads.
            return


def _folder_problems(entry: ModelEntry) -> Iterator[Problem]:
    folder = entry.source.folder if entry.source else None
    if folder is not None and not folder.exists():
        yield ("source", "folder"), f"There is no folder {folder}."
