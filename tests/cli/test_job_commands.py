"""``modelmill jobs``, ``cancel``, ``delete``, ``events`` and ``models`` against the real API."""

from __future__ import annotations

import json
from collections.abc import Callable

import httpx
import pytest
from typer.testing import CliRunner, Result

from modelmill import processes
from modelmill.client import Client, Job
from modelmill.store import WorkerStore
from modelmill_cli.app import app
from tests.support.api import finish
from tests.support.client import INPUTS, TASK

Run = Callable[..., Result]


@pytest.fixture
def run(api: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command."""
    monkeypatch.setenv("MODELMILL_URL", str(api.base_url))
    monkeypatch.setattr("modelmill_cli.jobs.out.width", 200)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def job(api: httpx.Client) -> Job:
    with Client(str(api.base_url)) as client:
        return client.submit(TASK, "noop", INPUTS, tags=["mine"])


def test_jobs_are_listed(run: Run, job: Job) -> None:
    listed = run("jobs")
    assert listed.exit_code == 0, listed.output
    for shown in (job.id, TASK, "noop", "starting"):
        assert shown in listed.output
    assert (
        job.id
        in run("jobs", "--task", TASK, "--model", "noop", "--status", "starting", "--tag", "mine").output
    )
    assert job.id not in run("jobs", "--status", "failed").output


def test_a_job_is_canceled_and_deleted(run: Run, job: Job) -> None:
    assert json.loads(run("cancel", job.id).stdout) == {"id": job.id, "status": "canceled"}
    assert run("delete", job.id).exit_code == 0
    again = run("delete", job.id)
    assert again.exit_code == 1
    assert "job_not_found" in again.output


def test_events_are_a_line_of_json_each(run: Run, job: Job, store: WorkerStore) -> None:
    finish(store)

    lines = [json.loads(line) for line in run("events", job.id).stdout.splitlines()]

    assert [line["type"] for line in lines] == ["started", "ended"]
    assert lines[-1]["data"]["result"] == {"probabilities": [0.8, 0.2]}


def test_models_in_use_are_listed_first_and_in_full(
    run: Run, store: WorkerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelmill_cli.jobs.out.width", 80)
    ours = "a-model-that-only-a-worker-of-ours-knows"
    store.announce("n1", "parent", {"models": {"noop": [TASK], ours: ["text-embedding", TASK]}}, ttl_s=60)
    states = {ours: {"status": "running"}, "noop": {"status": "failed", "error": "no weights"}}
    store.announce("n1", "child", {"models": states}, ttl_s=60)

    listed = run("models")

    assert listed.exit_code == 0, listed.output
    lines = listed.stdout.splitlines()
    assert lines[0].split() == ["model", "status", "tasks"]
    assert lines[1].split()[:2] == [ours, "running"]
    rows = [line.split() for line in lines if not line.startswith(" ")]
    assert rows[2][:2] == ["noop", "failed"]
    assert {row[1] for row in rows[3:]} == {"uninitialized"}


def test_a_server_that_does_not_answer_is_reported_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODELMILL_URL", f"http://127.0.0.1:{processes.free_port()}")

    result = CliRunner().invoke(app, ["jobs"])

    assert result.exit_code == 1
    assert "modelmill up" in " ".join(result.output.split())
