"""Addresses of the job routes."""

from __future__ import annotations


def task_path(task: str, batched: bool) -> str:
    """Where a task's jobs are: submit at ``{this}/{model}/jobs``, read at ``{this}/jobs/{id}``."""
    return f"/api/tasks/{task}{'/batched' if batched else ''}"


def bulk_path(task: str) -> str:
    """Where many plain jobs of a task are submitted in one request."""
    return f"{task_path(task, False)}/{{model}}/jobs:bulk"
