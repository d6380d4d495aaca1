"""Finds the runners: every subclass of ``Runner`` under this package, and installed plugins.

A third party adds runners by an entry point in the group ``modelmill.runners`` that names a module
or a class. A model's entry can also name one itself, as ``runner = "package.module:Class"``.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

import backends
from backends.contract import Runner
from modelmill.catalogue import ModelEntry
from modelmill.errors import ErrorCode, ModelmillError

ENTRY_POINT_GROUP = "modelmill.runners"

RunnerClass = type[Runner[Any, Any]]


@lru_cache(maxsize=1)
def all_runners() -> dict[tuple[str, str, str], RunnerClass]:
    """Every runner by backend, task and name."""
    found: dict[tuple[str, str, str], RunnerClass] = {}
    modules = [
        importlib.import_module(info.name)
        for info in pkgutil.walk_packages(backends.__path__, "backends.")
        if not info.name.endswith("__main__")
    ]
    classes = [runner for module in modules for runner in _runners_of(module)]
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        loaded = entry_point.load()
        classes += _runners_of(loaded) if isinstance(loaded, ModuleType) else [loaded]
    for runner in classes:
        found[(runner.backend, runner.task, runner.name)] = runner
    return found


def find_runner(entry: ModelEntry, task: str) -> RunnerClass:
    """The runner that answers ``task`` with this model.

    Raises:
        ModelmillError: ``model_load_failed`` when the backend has none, saying which it has.
    """
    if ":" in entry.runner:
        return _by_path(entry, task)
    runners = all_runners()
    try:
        return runners[(entry.backend, task, entry.runner)]
    except KeyError:
        known = sorted(f"{b} {t} {n}" for b, t, n in runners if t == task) or ["none for this task"]
        raise ModelmillError(
            ErrorCode.MODEL_LOAD_FAILED,
            f"Model {entry.name}: no runner {entry.runner!r} of backend {entry.backend!r} answers {task}. "
            f"There are: {', '.join(known)}.",
        ) from None


def _by_path(entry: ModelEntry, task: str) -> RunnerClass:
    module_name, _, class_name = entry.runner.partition(":")
    try:
        runner = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ModelmillError(
            ErrorCode.MODEL_LOAD_FAILED, f"Model {entry.name}: runner {entry.runner!r}: {error}"
        ) from None
    if not (inspect.isclass(runner) and issubclass(runner, Runner) and runner.task == task):
        raise ModelmillError(
            ErrorCode.MODEL_LOAD_FAILED, f"Model {entry.name}: {entry.runner!r} is no runner for {task}."
        )
    return runner


def _runners_of(module: ModuleType) -> list[RunnerClass]:
    return [
        member
        for _, member in inspect.getmembers(module, inspect.isclass)
        if issubclass(member, Runner)
        and not inspect.isabstract(member)
        and member.__module__ == module.__name__
    ]
