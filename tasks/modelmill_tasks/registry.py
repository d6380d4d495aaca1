"""Finds the tasks: every module of this package that defines ``TASK``, and those of installed plugins.

A plugin adds a task by an entry point in the group ``modelmill.tasks`` that names a ``Task``.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import lru_cache
from importlib.metadata import entry_points

import modelmill_tasks
from modelmill.catalogue import unknown_name
from modelmill.errors import ErrorCode
from modelmill_tasks.contract import Task

ENTRY_POINT_GROUP = "modelmill.tasks"


@lru_cache(maxsize=1)
def all_tasks() -> dict[str, Task]:
    """Every task by name, in alphabetical order."""
    found: dict[str, Task] = {}
    for module in pkgutil.iter_modules(modelmill_tasks.__path__):
        task = getattr(importlib.import_module(f"modelmill_tasks.{module.name}"), "TASK", None)
        if isinstance(task, Task):
            found[task.name] = task
    for entry_point in entry_points(group=ENTRY_POINT_GROUP):
        task = entry_point.load()
        if not isinstance(task, Task):
            raise TypeError(f"entry point {entry_point.name!r} ({entry_point.value}) is not a Task")
        found[task.name] = task
    return dict(sorted(found.items()))


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ModelmillError: ``task_not_found``, naming the nearest known ones.
    """
    known = all_tasks()
    if name not in known:
        raise unknown_name(ErrorCode.TASK_NOT_FOUND, "task", name, known)
    return known[name]
