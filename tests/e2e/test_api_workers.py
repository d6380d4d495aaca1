"""`modelmill api --workers 2`: two processes answer on one port, each also for the jobs of the other."""

from __future__ import annotations

import signal
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil

from modelmill import processes
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ClaimRequest, Outcome, WorkerStore
from modelmill_tasks.shared.examples import CAT
from tests.support.processes import wait_until
from tests.support.servers import environment_of

TASK = "/api/tasks/zero-shot-image-classification"


def test_two_processes_answer_on_one_port(settings: Settings, store: WorkerStore, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{(port := processes.free_port())}"
    with (tmp_path / "log").open("wb") as log:
        command = processes.python("-m", "modelmill_cli", "api", "--workers", "2", "--port", str(port))
        process = processes.start(command, environment_of(settings), log)

    def submit(_: int) -> httpx.Response:
        # Each request has a connection of its own, so that both processes get some.
        body = {"image": CAT, "classes": ["cat"]}
        return httpx.post(f"{url}{TASK}/noop/jobs", json=body, headers={"Prefer": "wait=20"}, timeout=30)

    def serving() -> list[psutil.Process]:
        family = psutil.Process(process.pid).children(recursive=True)
        return [each for each in family if "spawn_main" in " ".join(each.cmdline())]

    try:
        wait_until(lambda: len(serving()) == 2, what="two processes")
        wait_until(lambda: _answers(url), what="the API")
        with ThreadPoolExecutor(16) as pool:
            answers = [pool.submit(submit, n) for n in range(16)]
            wait_until(lambda: store.depth("noop") == 16, what="all jobs")
            jobs = store.claim(ClaimRequest("noop", uuid.uuid4().hex, "node", 16, 10**9)).jobs
            store.settle([Outcome(job.id, job.fence, Status.COMPLETE, b"{}") for job in jobs])
            # Each waiting request is answered, in both processes.
            assert {answer.result().json()["status"] for answer in answers} == {"complete"}
        family = psutil.Process(process.pid).children(recursive=True)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    assert process.returncode in (0, -signal.SIGTERM), (tmp_path / "log").read_text()
    assert psutil.wait_procs(family, timeout=10)[1] == []


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/ready").status_code == 200
    except httpx.HTTPError:
        return False
