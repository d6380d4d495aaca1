"""Finds the runners: every subclass of ``Runner`` under this package, and installed plugins.

A third party adds runners by an entry point in the group ``modelmill.runners`` that names a module
or a class. A model's entry can also name one itself, as ``runner = "package.module:Class"``; of backend
``custom``, it may name any function, which the runner of that backend calls.

A runner is looked for where its backend, task and name say that it probably is, so that a load
imports little; wherever else under this package it lies, it is found as well. Plugins are asked
last: they add runners and replace none.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from types import ModuleType
from typing import Any

import modelmill_backends
from modelmill.catalogue import ModelEntry
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import Runner

ENTRY_POINT_GROUP = "modelmill.runners"

CALLING_BACKEND = "custom"
"""The backend whose entries may name any function or class as their runner; its own runner calls that."""

RunnerClass = type[Runner[Any, Any]]
Key = tuple[str, str, str]
"""Backend, task and name."""


@cache
def all_runners() -> dict[Key, RunnerClass]:
    """Every runner by backend, task and name. Imports all of them: for listings and messages."""
    modules = [importlib.import_module(name) for name in _modules()]
    return _plugins() | {_key(runner): runner for module in modules for runner in _runners_of(module)}


def prepare(entries: Iterable[ModelEntry]) -> None:
    """Imports the built-in runners of these models, so that no load has to.

    What is wrong with one of them is said when its model is loaded.
    """
    for entry in entries:
        for task in entry.tasks:
            with suppress(Exception):
                if ":" not in entry.runner:
                    _built_in(entry.backend, task, entry.runner)


def find_runner(entry: ModelEntry, task: str) -> RunnerClass:
    """The runner that answers ``task`` with this model.

    Raises:
        ModelmillError: ``model_load_failed`` when the backend has none, saying which it has.
    """
    if ":" in entry.runner:
        return _by_path(entry, task)
    runner = _named(entry.backend, task, entry.runner)
    if runner is None and any(_named(entry.backend, other, entry.runner) for other in entry.tasks):
        # A name chooses where a backend has several runners for a task, and an entry's tasks share it.
        runner = _named(entry.backend, task, "default")
    if runner is None:
        known = sorted(f"{b} {t} {n}" for b, t, n in all_runners() if t == task) or ["none for this task"]
        raise ModelmillError(
            ErrorCode.MODEL_LOAD_FAILED,
            f"Model {entry.name}: no runner {entry.runner!r} of backend {entry.backend!r} answers {task}. "
            f"There are: {', '.join(known)}.",
        )
    return runner


def _named(backend: str, task: str, name: str) -> RunnerClass | None:
    return _built_in(backend, task, name) or _plugins().get((backend, task, name))


@cache
def _built_in(backend: str, task: str, name: str) -> RunnerClass | None:
    """Such a runner under this package. The modules whose names say the most are asked first."""
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
    classes = runners_named_by(entry_points(group=ENTRY_POINT_GROUP))
    return {_key(runner): runner for runner in classes}


def runners_named_by(points: Iterable[EntryPoint]) -> list[RunnerClass]:
    """The runners that these entry points name, each by a class or by its module."""
    classes: list[RunnerClass] = []
    for point in points:
        loaded = point.load()
        classes += _runners_of(loaded) if isinstance(loaded, ModuleType) else [loaded]
    return classes


@cache
def _modules() -> tuple[str, ...]:
    """Names of the modules under this package, of which only the packages are imported for it."""
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
        ErrorCode.MODEL_LOAD_FAILED, f"Model {entry.name}: {entry.runner!r} is no runner for {task}."
    )


def named_object(entry: ModelEntry) -> Any:
    """What the entry's ``runner = "package.module:object"`` names.

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
