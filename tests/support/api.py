"""Submits jobs by HTTP, plays the worker for them, and waits for their ends."""

from __future__ import annotations

import math
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx

from modelmill.states import Status
from modelmill.store import ClaimRequest, Outcome, WorkerStore
from modelmill_tasks.shared.examples import CAT

TASK = "/api/tasks/zero-shot-image-classification"
JOBS = f"{TASK}/noop/jobs"
BATCHED = f"{TASK}/batched/noop/jobs"
BODY: dict[str, Any] = {"image": CAT, "classes": ["cat", "dog"]}
RESULT = b'{"probabilities":[0.8,0.2]}'
ERROR = {"code": "inference_failed", "message": "No.", "retryable": False}


def submit(client: httpx.Client, model: str = "noop") -> str:
    """Submits one job; its id."""
    return str(client.post(f"{TASK}/{model}/jobs", json=BODY).raise_for_status().json()["id"])


def submit_jobs(client: httpx.Client, model: str, count: int = 1) -> list[str]:
    """Submits jobs one after the other; their ids."""
    return [submit(client, model) for _ in range(count)]


def submit_at_once(client: httpx.Client, model: str, count: int) -> list[str]:
    """Submits jobs from several threads; their ids."""
    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(lambda _: submit(client, model), range(count)))


def documents(client: httpx.Client, ids: list[str]) -> list[dict[str, Any]]:
    """What the API answers about each job."""
    return [client.get(f"/api/jobs/{job_id}").json() for job_id in ids]


def wait_all(client: httpx.Client, ids: list[str], timeout_s: float = 60.0) -> list[dict[str, Any]]:
    """Waits until all jobs have ended. Returns their documents."""
    deadline = time.monotonic() + timeout_s
    for job_id in ids:
        while not has_ended(client, job_id, deadline - time.monotonic()):
            assert time.monotonic() < deadline, f"job {job_id} did not end within {timeout_s} s"
    return documents(client, ids)


def has_ended(client: httpx.Client, job_id: str, wait_s: float = 0) -> bool:
    """Whether a job has ended. The API answers at its end, or after ``wait_s``, at most 20 s."""
    prefer = {"Prefer": f"wait={min(20, math.ceil(wait_s))}"} if wait_s > 0 else {}
    document = client.get(f"/api/jobs/{job_id}", headers=prefer).json()
    return str(document["status"]) in ("complete", "failed", "canceled")


def waiting(client: httpx.Client) -> int:
    """How many requests wait in the API, as its metrics say."""
    line = next(
        line
        for line in client.get("/metrics").text.splitlines()
        if line.startswith("modelmill_http_waiting ")
    )
    return int(float(line.split()[1]))


def finish(
    store: WorkerStore, status: Status = Status.COMPLETE, result: bytes = RESULT, count: int = 1000
) -> list[str]:
    """Plays the worker: ends up to ``count`` jobs of the model ``noop`` alike; their ids."""
    jobs = store.claim(ClaimRequest("noop", uuid.uuid4().hex, "node", count, 10**9)).jobs
    ends: dict[Status, dict[str, Any]] = {
        Status.COMPLETE: {"result": result},
        Status.FAILED: {"error": ERROR},
        Status.CANCELED: {},
    }
    store.settle([Outcome(job.id, job.fence, status, **ends[status]) for job in jobs])
    return [job.id for job in jobs]


def finish_one(store: WorkerStore, status: Status = Status.COMPLETE, model: str = "noop", **end: Any) -> None:
    """Plays the worker: ends the first job of a model, with ``result``, ``error`` or ``details``."""
    (job,) = store.claim(ClaimRequest(model, uuid.uuid4().hex, "node", 1, 10**9)).jobs
    store.settle([Outcome(job.id, job.fence, status, **end)])
