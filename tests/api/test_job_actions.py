"""Listing, canceling, deleting and rerunning jobs, and their results as files."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

import httpx
import pytest
import redis

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ClaimRequest, Outcome, WorkerStore, keys
from modelmill.store.listing import MAX_SCANNED
from modelmill_tasks.shared.examples import CAT
from tests.support.api import BODY, TASK, finish_one
from tests.support.processes import wait_until
from tests.support.servers import ApiServer

TEXT = "/api/tasks/text-embedding"
BATCH = {"image": [CAT, CAT], "classes": ["cat", "dog"]}


def submit(client: httpx.Client, path: str = f"{TASK}/noop", **more: Any) -> str:
    body = {"text": "A cat."} if path.startswith(TEXT) else BATCH if "batched" in path else BODY
    return str(client.post(f"{path}/jobs", json=body | more).raise_for_status().json()["id"])


def listed(client: httpx.Client, **query: Any) -> list[str]:
    return [job["id"] for job in client.get("/api/jobs", params=query).raise_for_status().json()["jobs"]]


def code(response: httpx.Response) -> tuple[int, str]:
    return response.status_code, response.json()["code"]


# Listing


def test_jobs_are_listed_newest_first_without_their_results(api: httpx.Client, store: WorkerStore) -> None:
    first, second = submit(api), submit(api, f"{TASK}/batched/noop", metadata={"row": 7}, tags=["blue"])
    finish_one(store, result=b'{"probabilities":[1,0]}')
    page = api.get("/api/jobs").json()
    assert [job["id"] for job in page["jobs"]] == [second, first]
    assert page["next"] is None
    newer, older = page["jobs"]
    assert (newer["status"], newer["items"], newer["metadata"], newer["tags"]) == (
        *("starting", 2),
        *({"row": 7}, ["blue"]),
    )
    alone = api.get(f"/api/jobs/{first}").json()
    assert alone.pop("result") == {"probabilities": [1, 0]}
    assert older.items() >= alone.items()


def test_filters_narrow_the_list(api: httpx.Client, store: WorkerStore) -> None:
    done = submit(api, tags=["red", "blue"])
    finish_one(store, result=b"{}")
    failed = submit(api, tags=["red"])
    finish_one(store, Status.FAILED, error={"code": "inference_failed", "message": "No.", "retryable": False})
    waiting = submit(api)
    embedding = submit(api, f"{TEXT}/minilm")
    assert listed(api) == [embedding, waiting, failed, done]
    assert listed(api, task="text-embedding") == [embedding]
    assert listed(api, model="noop") == [waiting, failed, done]
    assert listed(api, status="complete") == [done]
    assert listed(api, status=["failed", "complete"]) == [failed, done]
    assert listed(api, tag="red") == [failed, done]
    assert listed(api, tag="red", status="failed", model="noop") == [failed]
    assert listed(api, tag="blue", status="failed") == []


def test_pages_hold_while_jobs_come_and_go(api: httpx.Client) -> None:
    jobs = [submit(api) for _ in range(7)][::-1]
    page = api.get("/api/jobs", params={"limit": 3}).json()
    seen = [job["id"] for job in page["jobs"]]
    submit(api)
    assert api.delete(f"/api/jobs/{jobs[3]}").status_code == 204
    while page["next"]:
        page = api.get("/api/jobs", params={"limit": 3, "cursor": page["next"]}).json()
        seen += [job["id"] for job in page["jobs"]]
    assert seen == [*jobs[:3], *jobs[4:]]


def test_the_last_full_page_has_no_next(api: httpx.Client) -> None:
    for _ in range(4):
        submit(api)
    page = api.get("/api/jobs", params={"limit": 2}).json()
    page = api.get("/api/jobs", params={"limit": 2, "cursor": page["next"]}).json()
    assert (len(page["jobs"]), page["next"]) == (2, None)


def test_one_request_looks_at_a_bounded_number_of_jobs(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    wanted = submit(api, tags=["rare"])
    others = {f"00000000-0000-4000-8000-{number:012d}": 10**6 + number for number in range(MAX_SCANNED + 10)}
    raw_redis.zadd(f"{keys.JOBS}anonymous", others)
    first = api.get("/api/jobs", params={"tag": "rare"}).json()
    assert first["jobs"] == []
    second = api.get("/api/jobs", params={"tag": "rare", "cursor": first["next"]}).json()
    assert [job["id"] for job in second["jobs"]] == [wanted]


def test_a_wrong_filter_is_named(api: httpx.Client) -> None:
    for query, expected, named in (
        ("cursor=nonsense", (422, "invalid_input"), "cursor"),
        ("cursor=ajE%3D", (422, "invalid_input"), "cursor"),
        ("cursor=" + "%C3%A9" * 200, (422, "invalid_input"), "cursor"),
        ("limit=0", (422, "invalid_input"), "limit"),
        ("limit=101", (422, "invalid_input"), "limit"),
        ("status=done", (422, "invalid_input"), "status"),
        ("task=text-embeding", (404, "task_not_found"), "text-embedding"),
        ("model=nop", (404, "model_not_found"), "noop"),
    ):
        response = api.get(f"/api/jobs?{query}")
        assert code(response) == expected, query
        assert named in response.text


# Cancel and delete


def test_a_job_of_any_task_is_canceled_at_one_address(api: httpx.Client, store: WorkerStore) -> None:
    plain, batched = submit(api), submit(api, f"{TASK}/batched/noop")
    assert api.post(f"/api/jobs/{plain}/cancel").json() == {"id": plain, "status": "canceled"}
    assert api.post(f"{TASK}/batched/jobs/{batched}/cancel").json()["status"] == "canceled"
    submit(api)
    (running,) = store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9)).jobs
    assert api.post(f"/api/jobs/{running.id}/cancel").json()["status"] == "running"
    assert code(api.post(f"/api/jobs/{uuid.uuid4()}/cancel")) == (404, "job_not_found")


def test_a_deleted_job_is_gone_everywhere(api: httpx.Client, raw_redis: redis.Redis) -> None:
    for path, address in (
        (f"{TASK}/noop", "/api/jobs"),
        (f"{TASK}/noop", f"{TASK}/jobs"),
        (f"{TASK}/batched/noop", f"{TASK}/batched/jobs"),
    ):
        check_deleted(api, raw_redis, path, address)


def check_deleted(api: httpx.Client, raw_redis: redis.Redis, path: str, address: str) -> None:
    before = set(raw_redis.keys(f"{keys.PREFIX}*"))
    job = submit(api, path)
    deleted = api.delete(f"{address}/{job}")
    assert (deleted.status_code, deleted.content) == (204, b"")
    for again in (
        api.delete(f"{address}/{job}"),
        api.get(f"{address}/{job}"),
        api.get(f"/api/jobs/{job}/result"),
        api.post(f"/api/jobs/{job}/cancel"),
        api.post(f"/api/jobs/{job}/rerun"),
    ):
        assert code(again) == (404, "job_not_found")
    assert listed(api) == []
    left = {key for key in set(raw_redis.keys(f"{keys.PREFIX}*")) - before if job.encode() in key}
    assert left == set()


def test_a_running_job_goes_with_its_end(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    job = submit(api)
    (claimed,) = store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9)).jobs
    assert api.delete(f"/api/jobs/{job}").status_code == 204
    assert code(api.get(f"/api/jobs/{job}")) == (404, "job_not_found")
    assert listed(api) == []
    store.settle([Outcome(job, claimed.fence, Status.COMPLETE, result=b"{}")])
    assert raw_redis.exists(keys.JOB + job) == 0


def test_what_an_address_takes_is_said_where_it_is_asked_otherwise(api: httpx.Client) -> None:
    for path, methods in (
        ("/api/jobs/x", "DELETE, GET, HEAD"),
        (f"{TASK}/jobs/x", "DELETE, GET, HEAD"),
        ("/api/jobs", "GET, HEAD"),
        (f"{TASK}/noop/jobs:bulk", "POST"),
    ):
        response = api.put(path)
        assert code(response) == (405, "method_not_allowed")
        assert response.headers["allow"] == methods


def test_a_job_is_deleted_at_its_own_address_only(api: httpx.Client) -> None:
    job = submit(api)
    for wrong in (f"{TASK}/batched/jobs/{job}", f"{TEXT}/jobs/{job}"):
        assert code(api.delete(wrong)) == (404, "job_not_found")
    assert api.get(f"/api/jobs/{job}").status_code == 200


# Run again


def test_a_job_runs_again_with_the_same_request(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    more = {"lane": "bulk", "tags": ["a"], "metadata": {"n": 1}, "idempotency_key": "once"}
    first = submit(api, f"{TASK}/batched/noop", **more)
    finish_one(store, result=b"[]")
    response = api.post(f"/api/jobs/{first}/rerun")
    again = response.json()["id"]
    assert (response.status_code, response.json()["status"]) == (202, "starting")
    assert again != first
    assert response.headers["location"] == f"{TASK}/batched/jobs/{again}"
    document = api.get(response.headers["location"]).json()
    assert (document["lane"], document["tags"], document["metadata"]) == ("bulk", ["a"], {"n": 1})
    assert raw_redis.get(keys.INPUT + again) == raw_redis.get(keys.INPUT + first)


def test_running_again_takes_an_idempotency_key_and_waits(api: httpx.Client, store: WorkerStore) -> None:
    first = submit(api)
    headers = {"Idempotency-Key": "again"}
    jobs = {api.post(f"/api/jobs/{first}/rerun", headers=headers).json()["id"] for _ in range(2)}
    assert len(jobs) == 1
    finish_one(store, result=b"{}")
    finish_one(store, result=b'{"x":1}')
    waited = api.post(f"/api/jobs/{first}/rerun", headers={**headers, "Prefer": "wait=20"})
    assert (waited.status_code, waited.json()["result"]) == (200, {"x": 1})
    assert waited.headers["preference-applied"] == "wait=20"


def test_a_request_that_was_not_kept_cannot_run_again(settings: Settings, store: WorkerStore) -> None:
    server = ApiServer(settings.model_copy(update={"keep_request_bytes": 10}))
    try:
        with httpx.Client(base_url=server.url) as client:
            job = submit(client)
            finish_one(store, result=b"{}")
            refused = client.post(f"/api/jobs/{job}/rerun")
        assert code(refused) == (409, "request_not_kept")
        assert "10 bytes" in refused.json()["detail"]
        assert "KEEP_REQUEST_BYTES" in refused.json()["detail"]
    finally:
        server.close()


def test_a_request_that_is_no_longer_valid_is_refused_again(
    api: httpx.Client, raw_redis: redis.Redis
) -> None:
    job = submit(api)
    raw_redis.set(keys.INPUT + job, b'{"image": 1}')
    assert code(api.post(f"/api/jobs/{job}/rerun")) == (422, "invalid_input")


def upload(client: httpx.Client) -> str:
    png = base64.b64decode(CAT.partition(",")[2])
    return str(client.post("/api/files", files={"file": ("cat.jpg", png)}).raise_for_status().json()["id"])


def test_media_that_a_request_names_must_still_be_there(api: httpx.Client, store: WorkerStore) -> None:
    file = upload(api)
    job = submit(api, image=file)
    finish_one(store, result=b"{}")
    assert api.post(f"/api/jobs/{job}/rerun").status_code == 202
    finish_one(store, result=b"{}")
    assert api.delete(f"/api/files/{file}").status_code == 204
    gone = api.post(f"/api/jobs/{job}/rerun")
    assert code(gone) == (422, "media_not_found")
    assert api.get("/api/jobs").json()["jobs"][1]["id"] == job


# Results


def data_url(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode()}"


RESULT = {
    "images": [data_url("image/png", b"pixels"), data_url("text/html", b"<script>")],
    "audio": data_url("audio/wav", b"sound"),
    "scores": {"cat": 0.9, "a b": [1, 2]},
    "text": "data:nothing of the kind",
    "none": None,
}


@pytest.fixture
def done(api: httpx.Client, store: WorkerStore) -> str:
    job = submit(api)
    finish_one(store, result=json.dumps(RESULT).encode())
    return f"/api/jobs/{job}/result"


def test_a_result_is_read_alone(api: httpx.Client, done: str) -> None:
    response = api.get(done)
    assert (response.json(), response.headers["content-type"]) == (RESULT, "application/json")


def test_parts_of_a_result_are_json(api: httpx.Client, done: str) -> None:
    for path, value in (
        ("scores", RESULT["scores"]),
        ("scores/cat", 0.9),
        ("scores/a%20b/1", 2),
        ("text", RESULT["text"]),
        ("none", None),
    ):
        response = api.get(f"{done}/{path}")
        assert (response.json(), response.headers["content-type"]) == (value, "application/json")


def test_media_in_a_result_come_as_files(api: httpx.Client, done: str) -> None:
    for path, content, media_type, name in (
        ("images/0", b"pixels", "image/png", "images-0.png"),
        ("images/1", b"<script>", "application/octet-stream", "images-1.bin"),
        ("audio", b"sound", "audio/wav", "audio.wav"),
    ):
        response = api.get(f"{done}/{path}")
        assert (response.content, response.headers["content-type"]) == (content, media_type)
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["content-disposition"] == f'attachment; filename="{name}"'


def test_a_part_that_is_not_there_is_a_404(api: httpx.Client, done: str) -> None:
    for path in ("images/2", "images/-1", "images/x", "scores/dog", "scores/cat/0", "none/x"):
        assert code(api.get(f"{done}/{path}")) == (404, "not_found")


def test_a_part_s_address_may_end_in_a_slash(api: httpx.Client, done: str) -> None:
    for path in ("images/0", "scores/cat"):
        assert api.get(f"{done}/{path}/").content == api.get(f"{done}/{path}").content != b""


def test_a_large_result_is_read_in_parts_too(api: httpx.Client, store: WorkerStore) -> None:
    pixels = bytes(range(256)) * 4096
    job = submit(api)
    finish_one(store, result=json.dumps({"image": data_url("image/png", pixels)}).encode())
    assert api.get(f"/api/jobs/{job}/result/image").content == pixels


def test_a_result_that_is_not_there_says_where_the_job_is(api: httpx.Client, store: WorkerStore) -> None:
    job = submit(api)
    waiting = api.get(f"/api/jobs/{job}/result")
    assert code(waiting) == (409, "result_not_ready")
    assert "starting" in waiting.json()["detail"]
    assert waiting.headers["retry-after"] == "1"
    finish_one(
        store, Status.FAILED, error={"code": "inference_failed", "message": "It broke.", "retryable": False}
    )
    failed = api.get(f"/api/jobs/{job}/result/images/0")
    assert code(failed) == (409, "no_result")
    assert "failed: It broke." in failed.json()["detail"]


# Fields of a submit that concern the job


def test_what_belongs_to_a_job_is_bounded(api: httpx.Client) -> None:
    for wrong, field in (
        ({"metadata": {"x": "y" * 4096}}, "metadata"),
        ({"metadata": [1]}, "metadata"),
        ({"tags": ["x"] * 17}, "tags"),
        ({"tags": [""]}, "tags"),
        ({"tags": ["x" * 65]}, "tags"),
        ({"result_ttl": 0}, "result_ttl"),
        ({"result_ttl": 30 * 86400 + 1}, "result_ttl"),
        ({"result_ttl": "60"}, "result_ttl"),
        ({"idempotency_key": "two words"}, "idempotency_key"),
        ({"idempotency_key": "x" * 256}, "idempotency_key"),
        ({"webhook": "ftp://example.com"}, "webhook"),
        ({"webhook_events": []}, "webhook_events"),
    ):
        for path, body in ((f"{TASK}/noop/jobs", BODY), (f"{TASK}/batched/noop/jobs", BATCH)):
            response = api.post(path, json=body | wrong)
            assert code(response) == (422, "invalid_input"), wrong
            assert response.json()["errors"][0]["field"].split(".")[0] == field


def test_an_ended_job_says_when_it_is_forgotten_and_then_is(api: httpx.Client, store: WorkerStore) -> None:
    short, usual = submit(api, result_ttl=1), submit(api)
    finish_one(store, result=b"{}")
    finish_one(store, result=b"{}")
    document = api.get(f"/api/jobs/{short}").json()
    assert document["finished_at"] < document["expires_at"]
    assert api.get(f"/api/jobs/{usual}").json()["expires_at"] > document["expires_at"]
    wait_until(lambda: api.get(f"/api/jobs/{short}").status_code == 404, 5, "the end of its time")
    wait_until(lambda: listed(api) == [usual], 5, "the list")


def test_an_idempotency_key_may_stand_in_the_body(api: httpx.Client) -> None:
    body = BODY | {"idempotency_key": "mine"}
    first, again = (api.post(f"{TASK}/noop/jobs", json=body).json()["id"] for _ in range(2))
    assert first == again
    same = api.post(f"{TASK}/noop/jobs", json=body, headers={"Idempotency-Key": "mine"})
    assert same.json()["id"] == first
    other = api.post(f"{TASK}/noop/jobs", json=body, headers={"Idempotency-Key": "other"})
    assert code(other) == (422, "invalid_input")
