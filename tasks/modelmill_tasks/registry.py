"""Finds the tasks: every module of this package that defines ``TASK``, and those of installed plugins.

A plugin adds a task by an entry point in the group ``modelmill.tasks`` that names a ``Task``. It replaces no
built-in task.
"""

from __future__ import annotations

import importlib
import logging
import pkgutil
from functools import lru_cache
from importlib.metadata import EntryPoint

import modelmill_tasks
from modelmill.catalogue import unknown_name
from modelmill.entry_points import described, usable
from modelmill.errors import ErrorCode
from modelmill_tasks.contract import Task

logger = logging.getLogger(__name__)

ENTRY_POINT_GROUP = "modelmill.tasks"


@lru_cache(maxsize=1)
def all_tasks() -> dict[str, Task]:
    """Every task by name, in alphabetical order."""
    found: dict[str, Task] = {}
    for module in pkgutil.iter_modules(modelmill_tasks.__path__):
        task = getattr(importlib.import_module(f"modelmill_tasks.{module.name}"), "TASK", None)
        if isinstance(task, Task):
            found[task.name] = task
    for point, task in usable(ENTRY_POINT_GROUP, _read_plugin):
        if found.setdefault(task.name, task) is not task:
            logger.warning(
                "%s is left out: there already is a task of the name %s", described(point), task.name
            )
    return dict(sorted(found.items()))


def _read_plugin(point: EntryPoint) -> Task:
    task = point.load()
    if not isinstance(task, Task):
        raise TypeError("it names no Task")
    # A task without a batched field is found out here, not at its first job.
    task.batched_input  # noqa: B018
    return task


def find_task(name: str) -> Task:
    """The task of that name.

    Raises:
        ModelmillError: ``task_not_found``, naming the nearest known ones.
    """
    known = all_tasks()
    if name not in known:
        raise unknown_name(ErrorCode.TASK_NOT_FOUND, "task", name, known)
    return known[name]
