"""What a running `modelmill up` answers: the seed example, real photos, the command line."""

from __future__ import annotations

import base64
import io
import json
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelmill import processes
from modelmill.client import Client, data_url
from tests.fixtures import photos
from tests.support.cli import modelmill_here
from tests.support.paths import REPOSITORY
from tests.support.processes import wait_until
from tests.support.system import Up, up_to_end

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
    return modelmill_here(*arguments, MODELMILL_URL=up.url)


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
    nowhere = modelmill_here("job", "x", "--url", "http://127.0.0.1:1")
    assert nowhere.returncode == 1
    assert "modelmill up" in nowhere.stderr


def test_beside_a_running_up_there_is_room_for_workers_and_for_no_second_up(up: Up, tmp_path: Path) -> None:
    data = up.log.parent / "data"
    port = up.url.rpartition(":")[2]

    models = tmp_path / "models.toml"
    models.write_text(f'[models.only-here]\nbackend = "noop"\ntasks = ["{TASK}"]\n')
    command = processes.python("-m", "modelmill_cli", "worker", "--devices", "cpu", "--models", "only-here")
    options = ("--models-file", str(models), "--data-dir", str(data))
    with (tmp_path / "worker.log").open("wb") as log:
        joined = processes.start([*command, *options], log=log)

    same_data = up_to_end("--port", "0", "--data-dir", str(data))
    same_port = up_to_end("--port", port, "--data-dir", str(tmp_path / "other"))

    assert (same_data.returncode, same_port.returncode) == (1, 1)
    assert "in use by another `modelmill up`" in same_data.stderr
    assert same_port.stderr.splitlines() == [f"error: Port {port} is taken. Choose another with --port."]
    assert not (tmp_path / "other").exists()

    with Client(up.url) as client:
        wait_until(lambda: "only-here" in client.models(), 60, "the worker")
        # Such a large image lies in the folder for large payloads. The worker reads it there.
        body = {"image": data_url(CAT_PHOTO.read_bytes() + bytes(300_000)), "classes": ["cat", "dog"]}
        assert client.submit(TASK, "only-here", body).wait(30).result == {"probabilities": [0.5, 0.5]}
    assert (
        f"joining the `modelmill up` that runs with the data folder {data}"
        in (tmp_path / "worker.log").read_text()
    )
    assert processes.stop(joined, 40)
