"""How `modelmill up` starts and stops, and what it does not start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import psutil
import pytest

from modelmill import processes
from modelmill.client import Client, data_url
from tests.support.cli import modelmill_here
from tests.support.paths import NOOP_MODELS, REPOSITORY
from tests.support.processes import is_running, wait_until
from tests.support.system import AWKWARD, Up, start_up, up_to_end

CAT_PHOTO = REPOSITORY / "modelmill" / "data" / "chelsea.jpg"
TASK = "zero-shot-image-classification"


def test_up_stops_all_three_and_keeps_its_jobs_also_in_an_awkward_environment(
    tmp_path: Path, cache_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = ("--devices", "cpu", "--models-file", str(NOOP_MODELS))
    body = {"image": data_url(CAT_PHOTO), "classes": ["cat"]}
    first = start_up(tmp_path, cache_dir, *options)
    with Client(first.url) as client:
        done = client.submit(TASK, "noop", body).wait(30)
        assert done.status == "complete"

    stop_and_check(first, signal.SIGINT)
    for name, value in AWKWARD.items():
        monkeypatch.setenv(name, value)
    second = start_up(tmp_path, cache_dir, *options)

    fields = ("--image", str(CAT_PHOTO), "--classes", "cat", "--wait", "--url", second.url)
    submitted = modelmill_here("submit", TASK, "noop", *fields)
    assert submitted.returncode == 0, submitted.stderr
    assert '"probabilities"' in submitted.stdout
    with Client(second.url) as client:
        assert client.job(done.id).result == {"probabilities": [1.0]}
        assert client.submit(TASK, "noop", body).wait(30).status == "complete"
    stop_and_check(second, signal.SIGTERM)


def stop_and_check(up: Up, number: signal.Signals) -> None:
    """Sends a signal, and checks that no process is left."""
    children = psutil.Process(up.process.pid).children(recursive=True)
    assert {"valkey-server"} <= {child.name() for child in children}
    assert len(children) >= 5
    os.kill(up.process.pid, number)
    assert up.process.wait(timeout=40) == 0, up.log.read_text()
    assert not [child for child in children if is_running(child.pid)]


def test_a_wrong_models_file_is_told_once_and_nothing_is_started(tmp_path: Path) -> None:
    models = tmp_path / "models.toml"
    models.write_text('[models.wrong]\nbackend = "onnx"\ntasks = ["text-embeding"]\n')

    ended = up_to_end("--port", "0", "--data-dir", str(tmp_path / "data"), "--models-file", str(models))

    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert f"{models}, line 3: model 'wrong': tasks: There is no task 'text-embeding'" in line
    assert not (tmp_path / "data").exists()


def test_up_that_is_stopped_while_it_starts_stops_at_once(tmp_path: Path) -> None:
    log = tmp_path / "up.log"
    command = processes.python(
        "-m", "modelmill_cli", "up", "--port", "0", "--data-dir", str(tmp_path / "data")
    )
    with log.open("wb") as output:
        process = processes.start(command, log=output)
    wait_until(lambda: "starting the worker" in log.read_text(), 60, "the worker's start")

    process.send_signal(signal.SIGINT)

    assert process.wait(timeout=20) == 0, log.read_text()
    assert "is up" not in log.read_text()


def test_a_part_that_ends_by_itself_ends_the_rest(tmp_path: Path, cache_dir: Path) -> None:
    started = start_up(tmp_path, cache_dir, "--devices", "cpu", "--host", "::1")
    assert httpx.get(f"{started.url}/api/tasks").is_success
    api = next(
        child
        for child in psutil.Process(started.process.pid).children()
        if " api " in " ".join(child.cmdline())
    )
    api.kill()
    assert started.process.wait(timeout=40) == 1
    assert "the API ended by itself" in started.log.read_text()


def test_help_is_quick_to_import() -> None:
    code = (
        "import sys; sys.argv = ['modelmill', '--help']\n"
        "from modelmill_cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('celery', 'fastapi', 'redis', 'httpx', 'torch') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip().endswith("[]")
