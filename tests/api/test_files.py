"""Files over a real socket: uploaded, read, deleted, swept; and large bodies and results."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import httpx
import pytest
import redis

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ApiStore, ClaimRequest, Outcome, WorkerStore, keys
from modelmill.store.callers import KeyRing
from modelmill_tasks.shared.examples import CAT, SPEECH
from tests.fixtures.image_files import encoded, plain
from tests.support.processes import wait_until
from tests.support.servers import ApiServer, Valkey
from tests.support.store import read_job

PHOTO = base64.b64decode(CAT.partition(",")[2])
SOUND = base64.b64decode(SPEECH.partition(",")[2])
TASK = "/api/tasks/zero-shot-image-classification/noop/jobs"
KIB = 1024


both = pytest.mark.parametrize("place", ["redis", "folder"])


@pytest.fixture
def place() -> str:
    """Where content is kept, unless a test uses ``both``."""
    return "folder"


@pytest.fixture
def settings(place: str, settings: Settings, tmp_path: Path) -> Settings:
    """Small limits; content in Redis, or in a folder from 64 KiB on."""
    limits: dict[str, Any] = {"max_file_bytes": 1000 * KIB, "max_files_bytes": 1500 * KIB}
    if place == "folder":
        limits |= {"blob_url": str(tmp_path / "blobs"), "blob_min_bytes": 64 * KIB}
    return settings.model_copy(update=limits)


def upload(api: httpx.Client, content: bytes, name: str = "cat.jpg") -> httpx.Response:
    return api.post("/api/files", files={"file": (name, content, "text/html")})


def blobs(settings: Settings) -> list[Path]:
    return [] if settings.blob_url is None else [p for p in Path(settings.blob_url).rglob("*") if p.is_file()]


def sweep(settings: Settings, orphans_after_s: float | None = None) -> int:
    """Sweeps as the API's sweeper does; how many blobs it found to delete, or without a record."""

    async def run() -> int:
        store = ApiStore(settings)
        files = store.files
        try:
            if orphans_after_s is not None:
                return await files.sweep_orphans(orphans_after_s)
            return len(await files.sweep())
        finally:
            await store.close()

    return asyncio.run(run())


@both
@pytest.mark.parametrize("content", [PHOTO, os.urandom(900 * KIB), b"\0"], ids=["photo", "large", "one byte"])
def test_what_is_uploaded_is_read_until_it_is_deleted(
    api: httpx.Client, content: bytes, settings: Settings, raw_redis: redis.Redis
) -> None:
    answer = upload(api, content, "C:\\photos\\cat\r\n.jpg")
    document = answer.json()
    assert answer.status_code == 201
    scheme, _, file_id = document["id"].partition(":")
    assert (scheme, str(uuid.UUID(file_id))) == ("file", file_id)
    assert answer.headers["location"] == f"/api/files/{document['id']}"
    assert (document["bytes"], document["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert document["media_type"] == ("image/jpeg" if content is PHOTO else "application/octet-stream")
    assert document["created_at"] < document["expires_at"]
    assert len(blobs(settings)) == (settings.blob_url is not None and len(content) >= 64 * KIB)
    for name in (document["id"], file_id):
        read, looked = api.get(f"/api/files/{name}"), api.head(f"/api/files/{name}")
        assert (read.content, looked.content) == (content, b"")
        for response in (read, looked):
            assert response.status_code == 200
            assert response.headers["content-length"] == str(len(content))
            assert response.headers["content-type"] == document["media_type"]
            assert response.headers["content-disposition"] == "attachment"
            assert response.headers["x-content-type-options"] == "nosniff"
    assert api.delete(f"/api/files/{document['id']}").status_code == 204
    assert api.delete(f"/api/files/{document['id']}").json()["code"] == "file_not_found"
    assert api.get(f"/api/files/{file_id}").json()["code"] == "file_not_found"
    sweep(settings)
    assert blobs(settings) == []
    assert raw_redis.hget(keys.TOTALS, "file_bytes") == b"0"
    assert not list(raw_redis.scan_iter(keys.BLOB + "*"))


def test_of_a_name_the_last_part_is_kept(api: httpx.Client) -> None:
    names = {
        "cat.jpg": "cat.jpg",
        "../../etc/passwd": "passwd",
        "C:\\photos\\cat.jpg": "cat.jpg",
        "küche.png": "küche.png",
        "x" * 300: "x" * 255,
        "..\\": None,
    }
    assert {name: upload(api, b"x", name).json()["name"] for name in names} == names


def test_only_the_bytes_say_what_it_is(api: httpx.Client) -> None:
    page = b"<html><script>alert(1)</script></html>"
    assert upload(api, page, "page.html").json()["media_type"] == "application/octet-stream"
    assert upload(api, SOUND, "cat.jpg").json()["media_type"] == "audio/ogg"
    for kind, media_type in {"AVIF": "image/avif", "HEIF": "image/heic", "WEBP": "image/webp"}.items():
        assert upload(api, encoded(plain((64, 64)), kind), "x").json()["media_type"] == media_type


PART = b'--b\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
MULTIPART = "multipart/form-data; boundary=b"
NOT_ONE_FILE = [
    (MULTIPART, b""),
    (MULTIPART, b"--b--\r\n"),
    (MULTIPART, PART),
    (MULTIPART, PART + b"cut off"),
    (MULTIPART, PART + b"x\r\n--b\r\n"),
    (MULTIPART, PART + b"\r\n--b--\r\n"),
    (MULTIPART, b"no multipart at all"),
    (MULTIPART, PART + b"x\r\n" + PART + b"y\r\n--b--\r\n"),
    (MULTIPART, PART.replace(b'"file"', b'"other"') + b"x\r\n--b--\r\n"),
    (MULTIPART, b"--b\r\n\r\nno headers\r\n--b--\r\n"),
    (MULTIPART, b"--b\r\nContent-Disposition: " + b"x" * 10_000 + b"\r\n\r\nx\r\n--b--\r\n"),
    ("", PART + b"x\r\n--b--\r\n"),
    ("application/json", b"{}"),
    ("multipart/form-data", PART + b"x\r\n--b--\r\n"),
    ("multipart/mixed; boundary=b", PART + b"x\r\n--b--\r\n"),
]


def test_another_body_is_refused_and_nothing_is_left(
    api: httpx.Client, settings: Settings, raw_redis: redis.Redis
) -> None:
    for kind, body in NOT_ONE_FILE:
        answer = api.post("/api/files", content=body, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input"), (kind, body)
    whole = api.post("/api/files", content=PART + b"x\r\n--b--\r\n", headers={"Content-Type": MULTIPART})
    assert whole.status_code == 201
    assert len(list(raw_redis.scan_iter(keys.FILE + "*"))) == 1
    assert blobs(settings) == []


def test_a_file_over_the_limit_is_read_no_further(api: httpx.Client, settings: Settings) -> None:
    sent = 0

    def endless() -> Iterator[bytes]:
        nonlocal sent
        yield PART
        while sent < 50_000 * KIB:
            sent += 64 * KIB
            yield bytes(64 * KIB)

    kind = {"Content-Type": MULTIPART}
    exact, over = upload(api, bytes(1000 * KIB)), upload(api, bytes(1000 * KIB + 1))
    assert (exact.status_code, over.status_code, over.json()["code"]) == (201, 413, "body_too_large")
    try:
        streamed = api.post("/api/files", content=endless(), headers=kind)
        assert streamed.status_code == 413
    except httpx.WriteError:
        pass  # the connection was closed before the client had read why
    assert sent < 20_000 * KIB


@both
def test_all_files_together_have_a_limit(
    api: httpx.Client, settings: Settings, raw_redis: redis.Redis
) -> None:
    first = upload(api, bytes(900 * KIB)).json()["id"]
    full = upload(api, bytes(700 * KIB))
    assert (full.status_code, full.json()["code"]) == (503, "store_full")
    assert "retry-after" in full.headers
    assert raw_redis.hget(keys.TOTALS, "file_bytes") == b"%d" % (900 * KIB)
    assert api.delete(f"/api/files/{first}").status_code == 204
    assert upload(api, bytes(700 * KIB)).status_code == 201


def test_files_do_not_take_the_memory_that_results_need(settings: Settings, tmp_path: Path) -> None:
    server = Valkey(tmp_path, "--maxmemory", "16mb")
    more = {"redis_url": server.url, "blob_url": None, "max_files_bytes": 10**9}
    api = ApiServer(settings.model_copy(update=more))
    try:
        with httpx.Client(base_url=api.url) as client:
            answers = [upload(client, bytes(900 * KIB)) for _ in range(16)]
            codes = [answer.json().get("code") for answer in answers]
            assert codes[0] is None
            assert codes[-1] == "store_full"
            assert client.post(TASK, json={"image": CAT, "classes": ["cat"]}).status_code == 202
    finally:
        api.close()
        server.stop()


@both
def test_a_file_whose_time_is_over_goes(
    api: httpx.Client, settings: Settings, raw_redis: redis.Redis
) -> None:
    file_id = upload(api, os.urandom(100 * KIB)).json()["id"].removeprefix("file:")
    sweep(settings)
    assert api.get(f"/api/files/{file_id}").status_code == 200
    raw_redis.zadd(keys.FILES, {file_id: 1})
    assert sweep(settings) == len(blobs(settings)) or blobs(settings) == []
    assert api.get(f"/api/files/{file_id}").status_code == 404
    assert (blobs(settings), sweep(settings)) == ([], 0)
    assert raw_redis.zcard(keys.TRASH) == raw_redis.zcard(keys.FILES) == 0


@both
@pytest.mark.parametrize("deleted", [False, True], ids=["its time is over", "deleted"])
def test_a_file_stays_while_a_job_needs_it(
    api: httpx.Client, settings: Settings, store: WorkerStore, raw_redis: redis.Redis, deleted: bool
) -> None:
    content = PHOTO + bytes(100 * KIB)
    name = upload(api, content).json()["id"]
    body = {"image": name, "classes": ["cat"]}
    for _ in range(2):
        assert api.post(TASK, json=body).status_code == 202
    file_id = name.removeprefix("file:")
    if deleted:
        assert api.delete(f"/api/files/{name}").status_code == 204
        assert api.get(f"/api/files/{name}").status_code == 404
        again = api.post(TASK, json=body)
        assert (again.status_code, again.json()["code"]) == (422, "media_not_found")
    for left in (2, 1):
        raw_redis.zadd(keys.FILES, {file_id: 1})
        sweep(settings)
        assert store.read_file(file_id) == content
        assert raw_redis.hget(keys.FILE + file_id, "refs") == b"%d" % left
        (job,) = store.claim(ClaimRequest("noop", uuid.uuid4().hex, "node", 1, 10**9)).jobs
        assert job.files == {name: file_id}
        store.settle([Outcome(job.id, job.fence, Status.COMPLETE, result=b"{}")])
    raw_redis.zadd(keys.FILES, {file_id: 1})
    sweep(settings)
    assert store.read_file(file_id) is None
    assert blobs(settings) == []


def test_a_file_of_somebody_else_is_one_that_is_not_there(settings: Settings) -> None:
    with KeyRing(settings.redis_url) as ring:
        tokens = [ring.create(name) for name in ("ann", "bob")]
    server = ApiServer(settings.model_copy(update={"auth": "on"}))
    try:
        ann, bob = (
            httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {token}"})
            for token in tokens
        )
        with ann, bob:
            name = upload(ann, PHOTO).json()["id"]
            body = {"image": name, "classes": ["cat"]}
            nowhere = f"file:{uuid.uuid4()}"
            for method in ("GET", "DELETE", "HEAD"):
                foreign, missing = (bob.request(method, f"/api/files/{each}") for each in (name, nowhere))
                assert (foreign.status_code, foreign.content) == (404, missing.content)
            foreign, missing = (bob.post(TASK, json=body | {"image": each}) for each in (name, nowhere))
            assert (foreign.status_code, foreign.json()["code"]) == (422, "media_not_found")
            assert foreign.content == missing.content
            assert ann.post(TASK, json=body).status_code == 202
            assert ann.get(f"/api/files/{name}").content == PHOTO
    finally:
        server.close()


def test_what_is_no_id_is_not_there(api: httpx.Client) -> None:
    for name in ("x", "file:", "file:file:x", "..", "%00", "0" * 400, str(uuid.uuid4()).upper()):
        for method in ("GET", "HEAD", "DELETE"):
            assert api.request(method, f"/api/files/{name}").status_code in (404, 405), name


def test_blobs_that_no_record_names_are_swept(
    api: httpx.Client, settings: Settings, raw_redis: redis.Redis
) -> None:
    assert settings.blob_url is not None
    kept = upload(api, PHOTO + bytes(100 * KIB)).json()["id"]
    job = api.post(TASK, json={"image": CAT + "\n" * 70_000, "classes": ["cat"]}).json()["id"]
    folder = Path(settings.blob_url)
    for name in (f"in/{uuid.uuid4()}", f"out/{job}.fence", f"file/{uuid.uuid4()}", "tmp/tmpxyz"):
        (folder / name).write_bytes(b"left behind")
    assert sweep(settings, 60) == 0
    assert sweep(settings, -60) == 4
    assert {str(path.relative_to(folder)) for path in blobs(settings)} == {
        f"file/{kept.removeprefix('file:')}",
        f"in/{job}",
    }


@both
def test_large_bodies_and_results_lie_in_the_blob_store(
    api: httpx.Client, settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    where = settings.blob_url is not None
    body = {"image": CAT + "\n" * 70_000, "classes": ["cat"]}
    job_id = api.post(TASK, json=body).json()["id"]
    assert len(blobs(settings)) == where
    assert raw_redis.exists(keys.INPUT + job_id) == (not where)
    (job,) = store.claim(ClaimRequest("noop", "f1", "node", 1, 10**9)).jobs
    (read,) = store.inputs([job])
    assert read is not None
    assert httpx.Response(200, content=read).json() == body
    result = b'{"probabilities":[1.0%s]}' % (b",0.0" * 40_000)
    ended = Outcome(job.id, job.fence, Status.COMPLETE, result=result)
    # A worker that lost its lease writes, is refused, and leaves nothing behind.
    (refused,) = store.settle([Outcome(job.id, "f0", Status.COMPLETE, result=result)])
    assert (refused.value, len(blobs(settings))) == ("refused", int(where))
    assert [verdict.value for _ in range(2) for verdict in store.settle([ended])] == ["ok", "ok"]
    found = read_job(store, job_id)
    assert found is not None
    assert (found.result_json, found.result_blob) == (result, f"out/{job_id}.f1" if where else None)
    assert api.get(f"/api/jobs/{job_id}").json()["result"]["probabilities"][:2] == [1.0, 0.0]
    sweep(settings)
    assert len(blobs(settings)) == where, "the request goes with a good end, the result stays"
    assert api.delete(f"/api/jobs/{job_id}").status_code == 204
    sweep(settings)
    assert blobs(settings) == []


def test_the_body_of_a_refused_job_does_not_stay(settings: Settings) -> None:
    server = ApiServer(settings.model_copy(update={"max_queue_depth": 1}))
    body = {"image": CAT + "\n" * 70_000, "classes": ["cat"]}
    try:
        with httpx.Client(base_url=server.url) as client:
            assert client.post(TASK, json=body).status_code == 202
            assert client.post(TASK, json=body).status_code == 429
    finally:
        server.close()
    sweep(settings)
    assert len(blobs(settings)) == (settings.blob_url is not None)


def test_the_api_sweeps_by_itself(
    settings: Settings, raw_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelmill_api.background.sweeper.BUSY_S", 0.05)
    monkeypatch.setattr("modelmill_api.background.sweeper.IDLE_S", 0.05)
    server = ApiServer(settings)
    try:
        with httpx.Client(base_url=server.url) as client:
            file_id = upload(client, bytes(100 * KIB)).json()["id"].removeprefix("file:")
            raw_redis.zadd(keys.FILES, {file_id: 1})
            wait_until(
                lambda: not raw_redis.exists(keys.FILE + file_id) and not blobs(settings), what="the sweep"
            )
            wait_until(lambda: raw_redis.zcard(keys.TRASH) == 0, what="its end")
            assert client.get(f"/api/files/{file_id}").status_code == 404
    finally:
        server.close()


def form(*parts: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    """A multipart body; each part is the rest of its Content-Disposition, and its content."""
    body = b"".join(
        b"--B\r\nContent-Disposition: form-data; %b\r\n\r\n%b\r\n" % (about.encode(), content)
        for about, content in parts
    )
    return body + b"--B--\r\n", {"Content-Type": "multipart/form-data; boundary=B"}


A_FILE = ('name="file"; filename="cat.jpg"', b"abc")


@pytest.mark.parametrize(
    "parts",
    [
        [('name="title"', b"My cat"), A_FILE],
        [A_FILE, ('name="submit"', b"")],
        [('name="a"', b"x" * 30_000), A_FILE, ('name="b"', b"y")],
        [*[(f'name="field{index}"', b"1") for index in range(63)], A_FILE],
        [('name="photo"; filename=""', b""), A_FILE],
        [('name="file"', b"abc")],
    ],
    ids=["before", "after", "large", "many", "a file that was not chosen", "no name of a file"],
)
def test_a_form_with_other_fields_is_taken(api: httpx.Client, parts: list[tuple[str, bytes]]) -> None:
    body, headers = form(*parts)

    answer = api.post("/api/files", content=body, headers=headers)

    assert answer.status_code == 201, answer.text
    assert (answer.json()["bytes"], answer.json()["sha256"]) == (3, hashlib.sha256(b"abc").hexdigest())


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([A_FILE, A_FILE], "several parts"),
        ([A_FILE, ('name="other"; filename="dog.jpg"', b"abc")], "another name holds a file"),
        ([('name="photo"; filename="cat.jpg"', b"abc")], "named file"),
        ([('name="title"', b"My cat")], "named file"),
        ([], "named file"),
        ([A_FILE, ('name="a"', b"x" * 40_000)], "32768 bytes"),
        ([A_FILE, *[(f'name="f{index}"', b"") for index in range(64)]], "64 fields"),
        ([('filename="cat.jpg"', b"abc")], "no name"),
        ([('name="file"; filename="cat.jpg"\r\nX: ' + "y" * 9_000, b"abc")], "multipart"),
        ([('name="file"\r\nContent-Transfer-Encoding: base64', b"YWJj")], "Content-Transfer-Encoding"),
        ([('name="file"', b"")], "empty"),
    ],
)
def test_another_form_is_refused_with_the_reason(
    api: httpx.Client, parts: list[tuple[str, bytes]], said: str
) -> None:
    body, headers = form(*parts)

    answer = api.post("/api/files", content=body, headers=headers)

    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_input")
    assert said in answer.json()["detail"]


@pytest.mark.parametrize("length", [70, 256, 257, 5_000])
def test_a_boundary_of_any_length_is_used_or_refused(api: httpx.Client, length: int) -> None:
    boundary = "b" * length
    body = form(A_FILE)[0].replace(b"--B", f"--{boundary}".encode())

    answer = api.post(
        "/api/files", content=body, headers={"Content-Type": f"multipart/form-data; boundary={boundary}"}
    )

    assert answer.status_code == (201 if length <= 256 else 422)


def test_no_malformed_upload_is_an_error_of_the_server(api: httpx.Client) -> None:
    random = Random(7)
    whole, headers = form(A_FILE)
    pieces = [b"\r\n", b"--B", b'"', b";", b"=", b":", b"\xff", b"\0", b"filename*=utf-8''%ff", b"--"]
    statuses = set()
    for _ in range(150):
        body = bytearray(whole)
        for _ in range(random.randint(1, 3)):
            at = random.randrange(len(body))
            body[at : at + random.randint(0, 6)] = random.choice(pieces)
        statuses.add(api.post("/api/files", content=bytes(body), headers=headers).status_code)
    for kind in (
        "multipart/form-data",
        "multipart/mixed; boundary=B",
        "text/plain",
        "multipart/form-data; boundary=",
    ):
        statuses.add(api.post("/api/files", content=whole, headers={"Content-Type": kind}).status_code)

    assert statuses <= {201, 422}
