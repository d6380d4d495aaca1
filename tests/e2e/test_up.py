"""`modelmill up`: the seed example, real photos, the command line, a restart."""

from __future__ import annotations

import base64
import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from modelmill import processes
from modelmill.client import Client, data_url
from tests.fixtures import photos
from tests.support.paths import NOOP_MODELS, REPOSITORY
from tests.support.processes import is_running, wait_until
from tests.support.system import Up, start_up

CAT_PHOTO = REPOSITORY / "modelmill" / "data" / "chelsea.jpg"
TASK = "zero-shot-image-classification"
CLASSES = ["cat", "temple", "flower", "cup of coffee", "rocket", "camera", "motorcycle", "dog", "bird", "car"]


def run_to_end(http: httpx.Client, path: str, body: dict[str, Any]) -> dict[str, Any]:
    accepted = http.post(path, json=body)
    assert accepted.status_code == 202, accepted.text
    assert accepted.json().keys() == {"id", "status"}
    assert accepted.json()["status"] == "starting"
    document: dict[str, Any] = {}

    def ended() -> bool:
        document.update(http.get(accepted.headers["location"]).json())
        return document["status"] in ("complete", "failed")

    wait_until(ended, 60, "the job's end")
    return document


@pytest.fixture
def http(up: Up) -> Any:
    with httpx.Client(base_url=up.url, timeout=30) as client:
        yield client


def test_the_seed_example_works_word_for_word(http: httpx.Client) -> None:
    image = "data:image/jpeg;base64," + base64.b64encode(CAT_PHOTO.read_bytes()).decode()
    body = {"image": image, "classes": ["cat", "dog"], "config": {}}
    done = run_to_end(http, f"/api/tasks/{TASK}/conse-lite0/jobs", body)
    assert done["status"] == "complete"
    assert done["result"].keys() == {"probabilities"}
    cat, dog = done["result"]["probabilities"]
    assert cat > 0.9
    assert cat + dog == pytest.approx(1)
    del body["config"]
    assert run_to_end(http, f"/api/tasks/{TASK}/conse-lite0/jobs", body)["result"] == done["result"]


def test_a_batched_job_with_three_photos(http: httpx.Client) -> None:
    shown = {"chelsea": "cat", "coffee": "cup of coffee", "rocket": "rocket"}
    body = {"image": [photos.data_url(photos.photo(name)) for name in shown], "classes": CLASSES}
    done = run_to_end(http, f"/api/tasks/{TASK}/batched/conse-lite0/jobs", body)
    best = [CLASSES[max(range(10), key=item["probabilities"].__getitem__)] for item in done["result"]]
    assert best == list(shown.values())
    assert (done["items"], done["failed_items"]) == (3, 0)


def test_the_other_default_models_answer(http: httpx.Client) -> None:
    image = data_url(CAT_PHOTO)
    done = run_to_end(
        http,
        "/api/tasks/image-classification/efficientnet-lite0/jobs",
        {"image": image, "config": {"top_k": 3}},
    )
    labels = [row["label"] for row in done["result"]["classes"]]
    assert len(labels) == 3
    assert set(labels) & {"tabby", "tiger cat", "Egyptian cat"}
    done = run_to_end(http, "/api/tasks/text-embedding/minilm/jobs", {"text": "a cat"})
    assert len(done["result"]["embedding"]) == 384


def test_a_truncated_image_fails_alone_with_its_reason(http: httpx.Client) -> None:
    buffer = io.BytesIO()
    photos.photo("coffee").save(buffer, "JPEG")
    broken = base64.b64encode(buffer.getvalue()[:-5000]).decode()
    body = {"image": [data_url(CAT_PHOTO), broken], "classes": ["cat", "dog"]}
    done = run_to_end(http, f"/api/tasks/{TASK}/batched/conse-lite0/jobs", body)
    assert done["status"] == "complete"
    good, bad = done["result"]
    assert good["probabilities"][0] > 0.9
    assert bad["error"]["code"] == "invalid_media"
    assert "truncated" in bad["error"]["message"]
    alone = run_to_end(http, f"/api/tasks/{TASK}/conse-lite0/jobs", {"image": broken, "classes": ["cat"]})
    assert (alone["status"], alone["error"]["code"]) == ("failed", "invalid_media")


def test_the_client_runs_a_task(up: Up) -> None:
    with Client(up.url) as client:
        result = client.run(TASK, "conse-lite0", {"image": data_url(CAT_PHOTO), "classes": ["dog", "cat"]})
        assert result["probabilities"][1] > 0.9
        assert client.run(TASK, "noop", {"image": data_url(CAT_PHOTO), "classes": ["dog", "cat"]}) == {
            "probabilities": [0.5, 0.5]
        }


def modelmill(up: Up, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = processes.python("-m", "modelmill_cli", *arguments)
    environment = os.environ | {"MODELMILL_URL": up.url, "COLUMNS": "160"}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_the_command_line_submits_waits_and_shows(up: Up) -> None:
    image = ("--image", str(CAT_PHOTO))
    waited = modelmill(up, "submit", TASK, "conse-lite0", *image, "--classes", "cat,dog", "--wait")
    assert waited.returncode == 0, waited.stderr
    assert "cat" in waited.stdout
    assert json.loads(waited.stdout[waited.stdout.index("{") :])["probabilities"][0] > 0.9
    submitted = modelmill(up, "submit", TASK, "noop", *image, *image, "--classes", "cat,dog")
    job_id = json.loads(submitted.stdout)["id"]
    shown = json.loads(modelmill(up, "job", job_id, "--wait").stdout)
    assert shown["result"] == [{"probabilities": [0.5, 0.5]}] * 2
    text = modelmill(up, "submit", "text-embedding", "minilm", "--text", "a cat", "--wait", "--json")
    assert len(json.loads(text.stdout)["embedding"]) == 384


def test_the_command_line_lists_models_and_says_what_is_wrong(up: Up) -> None:
    listed = modelmill(up, "models")
    assert "conse-lite0" in listed.stdout
    assert "running" in listed.stdout
    assert "noop" in listed.stdout
    wrong = modelmill(up, "submit", TASK, "conse-lite", "--image", str(CAT_PHOTO), "--classes", "cat")
    assert wrong.returncode == 1
    assert "Did you mean conse-lite0" in wrong.stderr
    assert "Traceback" not in wrong.stderr
    nowhere = subprocess.run(
        processes.python("-m", "modelmill_cli", "job", "x", "--url", "http://127.0.0.1:1"),
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert nowhere.returncode == 1
    assert "modelmill up" in nowhere.stderr


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_stops_all_three_and_keeps_its_jobs(tmp_path: Path, cache_dir: Path, number: int) -> None:
    options = ("--devices", "cpu", "--models-file", str(NOOP_MODELS))
    first = start_up(tmp_path, cache_dir, *options)
    body = {"image": data_url(CAT_PHOTO), "classes": ["cat"]}
    with Client(first.url) as client:
        done = client.submit(TASK, "noop", body).wait(30)
        assert done.status == "complete"
    children = psutil.Process(first.process.pid).children(recursive=True)
    assert {"valkey-server"} <= {child.name() for child in children}
    assert len(children) >= 5
    os.kill(first.process.pid, number)
    assert first.process.wait(timeout=40) == 0, first.log.read_text()
    assert not [child for child in children if is_running(child.pid)]

    second = start_up(tmp_path, cache_dir, *options)
    with Client(second.url) as client:
        assert client.job(done.id).result == {"probabilities": [1.0]}
        assert client.submit(TASK, "noop", body).wait(30).status == "complete"
    assert processes.stop(second.process, 40)


def up_to_end(*options: str) -> subprocess.CompletedProcess[str]:
    command = processes.python("-m", "modelmill_cli", "up", *options)
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_beside_a_running_up_there_is_room_for_workers_and_for_no_second_up(
    tmp_path: Path, cache_dir: Path
) -> None:
    first = start_up(tmp_path, cache_dir, "--devices", "cpu")
    port = first.url.rpartition(":")[2]

    models = tmp_path / "models.toml"
    models.write_text(f'[models.only-here]\nbackend = "noop"\ntasks = ["{TASK}"]\n')
    command = processes.python("-m", "modelmill_cli", "worker", "--devices", "cpu", "--models", "only-here")
    options = ("--models-file", str(models), "--data-dir", str(tmp_path / "data"))
    with (tmp_path / "worker.log").open("wb") as log:
        joined = processes.start([*command, *options], log=log)

    same_data = up_to_end("--port", "0", "--data-dir", str(tmp_path / "data"))
    same_port = up_to_end("--port", port, "--data-dir", str(tmp_path / "other"))

    assert (same_data.returncode, same_port.returncode) == (1, 1)
    assert "in use by another `modelmill up`" in same_data.stderr
    assert same_port.stderr.splitlines() == [f"error: Port {port} is taken. Choose another with --port."]
    assert not (tmp_path / "other").exists()

    with Client(first.url) as client:
        wait_until(lambda: "only-here" in client.models(), 60, "the worker")
        # Its pixels lie in the folder for large payloads, where the worker has to look.
        body = {"image": data_url(CAT_PHOTO.read_bytes() + bytes(300_000)), "classes": ["cat", "dog"]}
        assert client.submit(TASK, "only-here", body).wait(30).result == {"probabilities": [0.5, 0.5]}
    assert (
        f"joining the `modelmill up` that runs with the data folder {tmp_path / 'data'}"
        in (tmp_path / "worker.log").read_text()
    )
    assert processes.stop(joined, 40)
    assert processes.stop(first.process, 40)


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
