"""Media by reference: ``file:`` ids and URLs, looked up when a job is submitted."""

from __future__ import annotations

import base64
import io
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis
from PIL import Image

from modelmill.settings import Settings
from modelmill.store import ClaimRequest, Limits, WorkerStore, keys
from modelmill_tasks.shared.examples import CAT, SPEECH
from tests.fixtures.image_files import encoded, jpeg_with_scans, plain, tiff
from tests.fixtures.web import Web
from tests.support.api import TASK
from tests.support.callers import People
from tests.support.servers import ApiServer

PHOTO = base64.b64decode(CAT.partition(",")[2])
SOUND = base64.b64decode(SPEECH.partition(",")[2])
HUGE = 40_000


def bmp(width: int, height: int) -> bytes:
    """The header of an image of this size, without its pixels."""
    buffer = io.BytesIO()
    Image.new("1", (8, 8)).save(buffer, "BMP")
    data = bytearray(buffer.getvalue())
    data[18:26] = width.to_bytes(4, "little") + height.to_bytes(4, "little")
    return bytes(data)


@pytest.fixture
def web() -> Iterator[Web]:
    pages = {
        "/cat.jpg": PHOTO,
        "/ten.ogg": SOUND,
        "/page": b"<html>",
        "/empty": b"",
        "/huge.bmp": bmp(HUGE, HUGE),
    }
    with Web(pages | {f"/{number}": PHOTO for number in range(70)} | {"/long": bytes(300_000)}) as found:
        yield found


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """URLs of this host may be fetched."""
    more = {"fetch_hosts": "127.0.0.1", "private_networks": "127.0.0.0/8", "max_fetch_bytes": 256_000}
    return settings.model_copy(update=more)


def upload(api: httpx.Client, content: bytes) -> str:
    name: str = api.post("/api/files", files={"file": content}).json()["id"]
    return name


def submit(api: httpx.Client, image: Any, **more: Any) -> httpx.Response:
    headers = more.pop("headers", {})
    path = f"{TASK}{'/batched' if isinstance(image, list) else ''}/noop/jobs"
    return api.post(path, json={"image": image, "classes": ["cat"], **more}, headers=headers)


def problem(response: httpx.Response) -> tuple[int, str, list[str]]:
    body = response.json()
    return response.status_code, body["code"], [field["field"] for field in body.get("errors", [])]


def test_a_job_takes_all_kinds_of_sources_together(
    api: httpx.Client, web: Web, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    name, url = upload(api, PHOTO), f"{web.url}/cat.jpg"
    answer = submit(api, [CAT, name, url, name, CAT.partition(",")[2], url])
    assert answer.status_code == 202, answer.text
    (job,) = store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9)).jobs
    assert job.files.keys() == {name, url}
    assert job.files[name] == name.removeprefix("file:")
    assert store.read_file(job.files[url]) == PHOTO
    assert web.asked == {"/cat.jpg": 1}, "once, although it stands there twice"
    # Fetched media are a file of the caller, kept for a moment and by the job.
    assert raw_redis.hget(keys.FILE + job.files[url], "refs") == b"1"
    kept_ms = raw_redis.zscore(keys.FILES, job.files[url]) - raw_redis.time()[0] * 1000  # type: ignore[operator]
    assert 0 < kept_ms <= 901_000


def test_what_is_wrong_with_one_is_said_of_its_field(api: httpx.Client, web: Web) -> None:
    sound, huge, page = upload(api, SOUND), upload(api, bmp(HUGE, HUGE)), upload(api, b"<html>")
    cases = {
        f"file:{uuid.uuid4()}": "media_not_found",
        "file:///etc/passwd": "media_not_found",
        "file:": "media_not_found",
        sound.upper().replace("FILE:", "file:"): "media_not_found",
        sound: "invalid_media",
        page: "invalid_media",
        huge: "media_too_large",
        f"{web.url}/ten.ogg": "invalid_media",
        f"{web.url}/page": "invalid_media",
        f"{web.url}/empty": "invalid_media",
        f"{web.url}/huge.bmp": "media_too_large",
        f"{web.url}/long": "media_too_large",
        f"{web.url}/nothing": "media_fetch_failed",
        "http://192.168.1.1/cat.jpg": "media_source_refused",
        "http://localhost/cat.jpg": "media_source_refused",
        "https://example.com/cat.jpg": "media_source_refused",
        f"{web.url}/to/http://169.254.169.254/latest": "media_source_refused",
    }
    for image, code in cases.items():
        refused = submit(api, image)
        assert problem(refused) == (422, code, ["image"]), image
    refused = submit(api, [CAT, f"{web.url}/cat.jpg", sound, CAT])
    assert problem(refused) == (422, "invalid_media", ["image.2"])
    assert "audio/ogg" in refused.json()["detail"]
    assert str(HUGE) in submit(api, huge).json()["detail"]


def test_a_file_of_another_kind_is_named(api: httpx.Client) -> None:
    pdf = b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n"
    for image in (upload(api, pdf), base64.b64encode(pdf).decode()):
        refused = submit(api, image)
        assert problem(refused) == (422, "invalid_media", ["image"])
        assert "This is a PDF: render its pages as images." in refused.json()["detail"]


def test_what_costs_a_decoder_too_much_is_refused_before_it_is_queued(api: httpx.Client) -> None:
    strips = tiff(b"a", t256=1, t257=1, t278=1, t273=("I", [8] * 400_000))
    for data, said in ((strips, "400000 strips"), (jpeg_with_scans((64, 64), 3000), "100 scans")):
        for image in (upload(api, data), base64.b64encode(data).decode()):
            refused = submit(api, image)
            assert problem(refused) == (422, "media_too_large", ["image"])
            assert said in refused.json()["detail"]


def test_photos_of_phones_are_accepted(api: httpx.Client) -> None:
    for kind in ("AVIF", "HEIF"):
        data = encoded(plain((64, 64)), kind)
        answers = [submit(api, image) for image in (upload(api, data), base64.b64encode(data).decode())]
        assert [answer.status_code for answer in answers] == [202, 202]


def test_spaces_around_a_name_do_not_count(api: httpx.Client, web: Web, store: WorkerStore) -> None:
    name, url = upload(api, PHOTO), f"{web.url}/cat.jpg"
    answer = submit(api, [f" {name}", f"{url}\n"])
    assert answer.status_code == 202, answer.text
    (job,) = store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9)).jobs
    assert job.files.keys() == {name, url}


def test_media_within_a_conversation_are_found_too(api: httpx.Client, web: Web, store: WorkerStore) -> None:
    models = api.get("/api/tasks/chat-completion/models").json()
    path = f"/api/tasks/chat-completion/{models[0]}/jobs"
    name = upload(api, PHOTO)
    for image, expected in ((name, 202), (f"{web.url}/cat.jpg", 202), ("file:x", 422)):
        content = [{"type": "text", "text": "http://127.0.0.1/ is text"}, {"type": "image", "image": image}]
        answer = api.post(path, json={"messages": [{"role": "user", "content": content}]})
        assert answer.status_code == expected, answer.text
    assert "messages.0.content" in problem(answer)[2][0]
    assert web.asked == {"/cat.jpg": 1}


def test_audio_may_be_named_as_well(api: httpx.Client, web: Web) -> None:
    model = api.get("/api/tasks/automatic-speech-recognition/models").json()[0]
    path = f"/api/tasks/automatic-speech-recognition/{model}/jobs"
    for audio in (upload(api, SOUND), f"{web.url}/ten.ogg"):
        assert api.post(path, json={"audio": audio}).status_code == 202
    refused = api.post(path, json={"audio": upload(api, PHOTO)})
    assert problem(refused) == (422, "invalid_media", ["audio"])


def test_an_idempotent_replay_fetches_nothing_again(api: httpx.Client, web: Web) -> None:
    headers, url = {"Idempotency-Key": "mine"}, f"{web.url}/cat.jpg"
    first, again = (submit(api, url, headers=headers) for _ in range(2))
    assert (first.status_code, first.json()) == (202, again.json())
    other = submit(api, url, headers=headers, tags=["another body"])
    assert problem(other) == (422, "idempotency_conflict", [])
    assert web.asked == {"/cat.jpg": 1}


def test_a_job_names_a_bounded_number_of_urls(api: httpx.Client, web: Web, store: WorkerStore) -> None:
    too_many = submit(api, [f"{web.url}/{number}" for number in range(65)])
    assert problem(too_many)[:2] == (422, "invalid_input")
    assert not web.asked
    assert submit(api, [f"{web.url}/{number}" for number in range(64)]).status_code == 202
    (job,) = store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9)).jobs
    assert len(set(job.files.values())) == 64


def test_where_no_host_is_allowed_nothing_is_fetched(settings: Settings, web: Web) -> None:
    server = ApiServer(settings.model_copy(update={"fetch_hosts": ""}))
    try:
        with httpx.Client(base_url=server.url) as client:
            refused = submit(client, f"{web.url}/cat.jpg")
            assert problem(refused) == (422, "media_source_refused", ["image"])
            assert "fetch_hosts" in refused.json()["detail"]
            name = upload(client, PHOTO)
            assert submit(client, name).status_code == 202
    finally:
        server.close()
    assert not web.asked


def test_an_address_that_is_not_public_is_refused_though_its_host_is_allowed(
    settings: Settings, web: Web
) -> None:
    server = ApiServer(settings.model_copy(update={"fetch_hosts": "*", "private_networks": ""}))
    try:
        with httpx.Client(base_url=server.url) as client:
            for host in ("127.0.0.1", "localhost", "[::1]"):
                refused = submit(client, web.url.replace("127.0.0.1", host) + "/cat.jpg")
                assert problem(refused) == (422, "media_source_refused", ["image"])
    finally:
        server.close()
    assert not web.asked


def test_fetched_media_count_as_files(settings: Settings, web: Web, raw_redis: redis.Redis) -> None:
    server = ApiServer(settings.model_copy(update={"max_files_bytes": len(PHOTO) + 10}))
    try:
        with httpx.Client(base_url=server.url) as client:
            full = submit(client, [f"{web.url}/1", f"{web.url}/2"])
            assert (full.status_code, full.json()["code"]) == (503, "store_full")
            assert raw_redis.hget(keys.TOTALS, "jobs") is None
    finally:
        server.close()


@pytest.mark.parametrize(
    "limits", [Limits(jobs_per_minute=1, burst=1), Limits(max_jobs=1)], ids=["rate", "quota"]
)
def test_nothing_is_fetched_for_a_key_over_its_limits(people: People, web: Web, limits: Limits) -> None:
    client = people(limits=limits)
    answers = [
        client.post(f"{TASK}/noop/jobs", json={"image": f"{web.url}/{number}", "classes": ["cat"]})
        for number in range(2)
    ]
    assert [answer.status_code for answer in answers] == [202, 429]
    assert web.asked == {"/0": 1}
