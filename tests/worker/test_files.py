"""Media by reference and large payloads, as workers read and write them."""

from __future__ import annotations

import base64
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from modelmill.catalogue import Catalogue
from modelmill.errors import ErrorCode, MediaError
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import Claimed, WorkerStore, keys
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import current_device
from modelmill_backends.loader import LoadedModel
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.images import open_image
from modelmill_tasks.shared.sources import source_bytes
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.batches import preprocess
from modelmill_worker.drain.context import DrainContext
from modelmill_worker.drain.drain import Drain
from modelmill_worker.drain.jobs import FileUnavailableError, close_job, open_job
from modelmill_worker.drain.leases import Leases
from tests.fixtures.image_sizes import MODELS
from tests.fixtures.web import Web
from tests.support.processes import wait_until
from tests.support.workers import Workers

PHOTO = base64.b64decode(CAT.partition(",")[2])
SIZE = [side / 1000 for side in open_image(PHOTO).size]
TASK = "zero-shot-image-classification"
JOBS = f"/api/tasks/{TASK}/image-size/jobs"
BATCHED = f"/api/tasks/{TASK}/batched/image-size/jobs"


@pytest.fixture
def settings(settings: Settings, tmp_path: Path) -> Settings:
    """A model that opens its images, a blob store from 100 KiB on, and URLs of this host."""
    models = tmp_path / "models.toml"
    models.write_text(MODELS)
    more = {
        "models_file": models,
        "blob_url": str(tmp_path / "blobs"),
        "blob_min_bytes": 100 * 1024,
        "fetch_hosts": "127.0.0.1",
        "private_networks": "127.0.0.0/8",
        "linger_s": 0.05,
    }
    return settings.model_copy(update=more)


@pytest.fixture
def image_sizes(settings: Settings) -> LoadedModel:
    catalogue = Catalogue.load(settings.models_file)
    return LoadedModel(LoadContext(catalogue["image-size"], current_device(), catalogue, settings)).load()


@pytest.fixture
def drain(settings: Settings, store: WorkerStore, tmp_path: Path) -> Iterator[Drain]:
    made = Drain(DrainContext(settings, store, Leases(store), Recorder(tmp_path), node="node", device="cpu"))
    yield made
    made.close()


def upload(api: httpx.Client, content: bytes = PHOTO) -> str:
    name: str = api.post("/api/files", files={"file": content}).json()["id"]
    return name


def submit(api: httpx.Client, image: Any, *classes: str, **more: Any) -> str:
    body = {"image": image, "classes": classes or ("cat",), **more}
    answer = api.post(BATCHED if isinstance(image, list) else JOBS, json=body)
    assert answer.status_code == 202, answer.text
    job_id: str = answer.json()["id"]
    return job_id


def looked(api: httpx.Client, job_id: str) -> dict[str, Any]:
    document: dict[str, Any] = api.get(f"/api/jobs/{job_id}").json()
    return document


def claimed(files: dict[str, str]) -> Claimed:
    return Claimed(str(uuid.uuid4()), "fence", TASK, True, 1, 1, 0.0, files=files)


def test_what_a_request_names_is_read_when_it_is_needed(image_sizes: LoadedModel) -> None:
    asked: list[str] = []

    def read(file_id: str) -> bytes:
        asked.append(file_id)
        if file_id == "gone":
            raise MediaError(ErrorCode.MEDIA_NOT_FOUND, "The file no longer exists.")
        return PHOTO

    body = json.dumps({"image": ["file:a", CAT, "http://x/y", "file:b"], "classes": ["cat"]}).encode()
    files = {"file:a": "one", "http://x/y": "two", "file:b": "gone"}
    job = open_job(claimed(files), body, read_file=read)
    assert asked == []
    for item in job.items:
        preprocess(image_sizes.runner(TASK), item)
    assert asked == ["one", "two", "gone"]
    codes = [item.error and item.error.code for item in job.items]
    assert codes == [None, None, None, ErrorCode.MEDIA_NOT_FOUND]
    assert source_bytes(job.items[0].input.model_dump()["image"]) == PHOTO


def test_a_source_that_the_job_has_no_file_for_is_refused_when_it_is_opened(image_sizes: LoadedModel) -> None:
    body = json.dumps({"image": ["file:a", "http://x/y"], "classes": ["cat"]}).encode()
    job = open_job(claimed({"file:b": "b"}), body, read_file=lambda _: PHOTO)
    for item in job.items:
        preprocess(image_sizes.runner(TASK), item)
    assert [item.error and item.error.code for item in job.items] == [ErrorCode.MEDIA_SOURCE_REFUSED] * 2
    assert close_job(job, {}).status is Status.FAILED


def test_an_item_whose_file_is_unreachable_has_not_ended(image_sizes: LoadedModel) -> None:
    def read(file_id: str) -> bytes:
        raise FileUnavailableError("no answer")

    body = json.dumps({"image": ["file:a", CAT], "classes": ["cat"]}).encode()
    job = open_job(claimed({"file:a": "one"}), body, read_file=read)
    for item in job.items:
        preprocess(image_sizes.runner(TASK), item)
    assert [item.prepared is not None for item in job.items] == [False, True]
    assert (job.items[0].error, job.is_done) == (None, False)


def test_a_file_that_is_gone_fails_its_item_alone(
    api: httpx.Client, drain: Drain, image_sizes: LoadedModel, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    lost, kept = upload(api), upload(api)
    job_id = submit(api, [lost, kept, CAT])
    alone = submit(api, lost)
    raw_redis.delete(keys.BLOB + lost.removeprefix("file:"))
    drain.run(image_sizes, threading.Event())
    first, *others = looked(api, job_id)["result"]
    assert first["error"]["code"] == "media_not_found"
    assert [other["probabilities"] for other in others] == [SIZE, SIZE]
    assert looked(api, alone)["error"]["code"] == "media_not_found"


@pytest.mark.parametrize("folder", ["file", "in"])
def test_while_the_blob_store_is_unreachable_jobs_wait_and_no_delivery_counts(
    api: httpx.Client,
    drain: Drain,
    image_sizes: LoadedModel,
    settings: Settings,
    raw_redis: redis.Redis,
    folder: str,
) -> None:
    large = PHOTO + bytes(110 * 1024)
    image = upload(api, large) if folder == "file" else CAT + "\n" * 110_000
    job_id = submit(api, image)
    here, away = Path(settings.blob_url or "") / folder, Path(settings.blob_url or "") / "away"
    assert len(list(here.iterdir())) == 1
    here.rename(away)
    drain.run(image_sizes, threading.Event())
    assert looked(api, job_id)["status"] == "starting"
    assert raw_redis.zcard(keys.LEASES) == 0
    away.rename(here)
    drain.run(image_sizes, threading.Event())
    done = looked(api, job_id)
    assert (done["status"], done["deliveries"], done["result"]["probabilities"]) == ("complete", 1, SIZE)


def test_a_result_that_cannot_be_written_is_kept_until_it_can(
    api: httpx.Client, drain: Drain, image_sizes: LoadedModel, settings: Settings
) -> None:
    job_id = submit(api, CAT, "40000")
    out = Path(settings.blob_url or "") / "out"
    out.rmdir()
    runs = threading.Thread(target=drain.run, args=(image_sizes, threading.Event()))
    runs.start()
    runs.join(20)
    assert not runs.is_alive(), "other jobs do not wait for it"
    assert looked(api, job_id)["status"] == "running"
    assert looked(api, job_id)["status"] == "running"
    out.mkdir()
    wait_until(lambda: looked(api, job_id)["status"] == "complete", what="the result")
    assert looked(api, job_id)["result"]["probabilities"] == [*SIZE, *[0.0] * 40_000]
    assert len(list(out.iterdir())) == 1


def test_a_worker_reads_files_urls_and_large_bodies(
    api: httpx.Client, start_workers: Callable[..., Workers], settings: Settings
) -> None:
    with Web({"/cat.jpg": PHOTO}) as web:
        small, large = upload(api), upload(api, PHOTO + bytes(110 * 1024))
        url = f"{web.url}/cat.jpg"
        ids = [submit(api, image) for image in (small, large, url, CAT + "\n" * 110_000)]
        batched = submit(api, [small, CAT, url, large, small])
        long = submit(api, large, "40000")
        asked = web.asked["/cat.jpg"]
    for name in (small, large):
        assert api.delete(f"/api/files/{name}").status_code == 204
    start_workers()
    wait_until(lambda: all(looked(api, each)["status"] == "complete" for each in (*ids, batched, long)))
    assert asked == 2
    assert [looked(api, each)["result"]["probabilities"] for each in ids] == [SIZE] * 4
    assert [each["probabilities"] for each in looked(api, batched)["result"]] == [SIZE] * 5
    assert looked(api, long)["result"]["probabilities"] == [*SIZE, *[0.0] * 40_000]
    assert [path.name.partition(".")[0] for path in Path(settings.blob_url or "").glob("out/*")] == [long]
