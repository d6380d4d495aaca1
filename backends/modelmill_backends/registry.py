"""Finds the runners: every subclass of ``Runner`` in this package, and those of installed plugins.

A plugin adds runners by an entry point in the group ``modelmill.runners`` that names a module or a class.
A model's entry can also name a runner itself, as ``runner = "package.module:Class"``. An entry of the
backend ``custom`` may name any function; the runner of that backend calls it.

The search begins with the modules whose names contain the backend, task and name, so that a load imports
little. If the runner is in another module of this package, it is found as well. Plugins come last: they
add runners and replace none.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint
from types import ModuleType
from typing import Any

import modelmill_backends
from modelmill.catalogue import ModelEntry
from modelmill.entry_points import usable
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import Runner

ENTRY_POINT_GROUP = "modelmill.runners"

CALLING_BACKEND = "custom"
"""Entries of this backend may name any function or class as their runner; the backend's runner calls it."""

RunnerClass = type[Runner[Any, Any]]
Key = tuple[str, str, str]
"""Backend, task and name."""

left_out_plugins: list[str] = []
"""A sentence for each plugin that could not be imported. A missing runner may be one of theirs."""


@cache
def all_runners() -> dict[Key, RunnerClass]:
    """Every runner by backend, task and name. Imports all modules: use it for lists and messages only."""
    modules = [importlib.import_module(name) for name in _modules()]
    return _plugins() | {_key(runner): runner for module in modules for runner in _runners_of(module)}


def prepare(entries: Iterable[ModelEntry]) -> None:
    """Imports the built-in runners of these models, so that a later load need not do it.

    If an import fails, the error is reported when that model is loaded.
    """
    for entry in entries:
        for task in entry.tasks:
            with suppress(Exception):
                if ":" not in entry.runner:
                    _built_in(entry.backend, task, entry.runner)


def find_runner(entry: ModelEntry, task: str) -> RunnerClass:
    """The runner that answers ``task`` with this model.

    Raises:
        ModelmillError: ``model_load_failed``: the backend has none; the message lists the task's runners.
    """
    if ":" in entry.runner:
        return _by_path(entry, task)
    runner = _named(entry.backend, task, entry.runner)
    if runner is None and any(_named(entry.backend, other, entry.runner) for other in entry.tasks):
        # All tasks of an entry share its runner name, but the backend may have only a default for this task.
        runner = _named(entry.backend, task, "default")
    if runner is None:
        known = sorted(f"{b} {t} {n}" for b, t, n in all_runners() if t == task) or ["none for this task"]
        raise ModelmillError(
            ErrorCode.MODEL_LOAD_FAILED,
            f"Model {entry.name}: no runner {entry.runner!r} of backend {entry.backend!r} answers {task}. "
            + " ".join([f"There are: {', '.join(known)}.", *(f"Note: {each}." for each in left_out_plugins)]),
        )
    return runner


def _named(backend: str, task: str, name: str) -> RunnerClass | None:
    return _built_in(backend, task, name) or _plugins().get((backend, task, name))


@cache
def _built_in(backend: str, task: str, name: str) -> RunnerClass | None:
    """The runner in this package. Modules whose names match best are searched first."""
    words = [word.replace("-", "_") for word in (backend, task, name)]

    def distance(module: str) -> tuple[bool, int]:
        parts = module.split(".")
        return words[0] not in parts, -len(set(words).intersection(parts))

    for module in sorted(_modules(), key=distance):
        for runner in _runners_of(importlib.import_module(module)):
            if _key(runner) == (backend, task, name):
                return runner
    return None


@cache
def _plugins() -> dict[Key, RunnerClass]:
    left_out_plugins.clear()
    found = usable(ENTRY_POINT_GROUP, lambda point: runners_named_by([point]), left_out_plugins)
    return {_key(runner): runner for _, classes in found for runner in classes}


def runners_named_by(points: Iterable[EntryPoint]) -> list[RunnerClass]:
    """The runners that these entry points name, each by its class or its module."""
    classes: list[RunnerClass] = []
    for point in points:
        loaded = point.load()
        classes += _runners_of(loaded) if isinstance(loaded, ModuleType) else [loaded]
    return classes


@cache
def _modules() -> tuple[str, ...]:
    """Names of all modules in this package. Listing them imports the packages only, not the modules."""
    found = pkgutil.walk_packages(modelmill_backends.__path__, "modelmill_backends.")
    return tuple(module.name for module in found if not module.name.endswith("__main__"))


def _by_path(entry: ModelEntry, task: str) -> RunnerClass:
    named = named_object(entry)
    if inspect.isclass(named) and issubclass(named, Runner):
        if named.task == task:
            return named
    elif entry.backend == CALLING_BACKEND and callable(named):
        runner = _built_in(entry.backend, task, "default")
        if runner is not None:
            return runner
    raise ModelmillError(
        ErrorCode.MODEL_LOAD_FAILED, f"Model {entry.name}: {entry.runner!r} is not a runner for {task}."
    )


def named_object(entry: ModelEntry) -> Any:
    """The object that the entry's ``runner = "package.module:object"`` names.

    Raises:
        ModelmillError: ``model_load_failed``: there is no such module or object.
    """
    module_name, _, name = entry.runner.partition(":")
    try:
        return getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ModelmillError(
            ErrorCode.MODEL_LOAD_FAILED, f"Model {entry.name}: runner {entry.runner!r}: {error}"
        ) from None


def _runners_of(module: ModuleType) -> list[RunnerClass]:
    return [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Runner)
        and not inspect.isabstract(member)
        and member.__module__ == module.__name__
    ]


def _key(runner: RunnerClass) -> Key:
    return runner.backend, runner.task, runner.name
