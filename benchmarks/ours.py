"""How the load client asks Modelmill."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import httpx

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


def ask(client: httpx.Client, model: str, body: bytes, task: str = TASK) -> float:
    """Seconds of one job, from its request to the answer that holds its result."""
    headers = {"Content-Type": "application/json", **WAIT}
    started = time.perf_counter()
    response = client.post(f"/api/tasks/{task}/{model}/jobs", content=body, headers=headers)
    took = time.perf_counter() - started
    assert response.json()["status"] == "complete", response.text
    return took


def _ended(document: Any) -> bool:
    if document["status"] == "complete":
        if not document["result"]["probabilities"]:
            raise RuntimeError(f"a result without probabilities: {document}")
        return True
    if document["status"] not in ("starting", "running"):
        raise RuntimeError(f"the job did not complete: {document}")
    return False
