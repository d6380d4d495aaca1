"""How the load client asks Modelmill."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks.load import Target
from benchmarks.system import System
from benchmarks.work import TASK

WAIT = {"Prefer": "wait=60"}


def polled(system: System, model: str, body: bytes) -> Target:
    """Submit, then poll until the job has ended."""
    return Target(
        "modelmill",
        system.port,
        f"/api/tasks/{TASK}/{model}/jobs",
        body,
        poll_path=lambda accepted: f"/api/tasks/{TASK}/jobs/{accepted['id']}",
        ended=_ended,
    )


def waited(system: System, model: str, body: bytes) -> Target:
    """One request a job, answered when the job has ended."""
    return replace(
        polled(system, model, body), name="modelmill, Prefer: wait", poll_path=None, headers=dict(WAIT)
    )


def _ended(document: Any) -> bool:
    if document["status"] == "complete":
        if not document["result"]["probabilities"]:
            raise RuntimeError(f"a result without probabilities: {document}")
        return True
    if document["status"] not in ("starting", "running"):
        raise RuntimeError(f"the job did not complete: {document}")
    return False
