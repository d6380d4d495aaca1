"""Bodies as clients send them: compressed, with a byte order mark, too many values, too many at once."""

from __future__ import annotations

import asyncio
import base64
import gzip
import hashlib
import json
import re
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import redis

from modelmill.errors import ModelmillError
from modelmill.settings import Settings
from modelmill.store import keys
from modelmill_api import room as room_module
from modelmill_api.room import BodyRoom, Place
from tests.support.api import BATCHED, BODY, JOBS
from tests.support.servers import ApiServer

KIB = 1024
MARK = b"\xef\xbb\xbf"
TEXT = json.dumps(BODY).encode()
JSON = {"Content-Type": "application/json"}


def _bare_deflate(data: bytes) -> bytes:
    packer = zlib.compressobj(wbits=-15)
    return packer.compress(data) + packer.flush()


ENCODED = {
    "gzip": [gzip.compress(TEXT), gzip.compress(TEXT[:9]) + gzip.compress(TEXT[9:])],
    "X-GZIP": [gzip.compress(TEXT)],
    "deflate": [zlib.compress(TEXT), _bare_deflate(TEXT)],
    "identity": [TEXT],
}


def refusal(answer: httpx.Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["code"]


def pieces(data: bytes, size: int = 7) -> Iterator[bytes]:
    """A body without a length."""
    for at in range(0, len(data), size):
        yield data[at : at + size]


def test_an_encoded_body_is_the_body_that_it_holds(api: httpx.Client, raw_redis: redis.Redis) -> None:
    for encoding, bodies in ENCODED.items():
        for body in bodies:
            for content in (body, pieces(body)):
                answer = api.post(JOBS, content=content, headers=JSON | {"Content-Encoding": encoding})
                assert answer.status_code == 202, (encoding, answer.text)
                assert raw_redis.get(keys.INPUT + answer.json()["id"]) == TEXT


def test_every_route_with_a_body_takes_an_encoded_one(api: httpx.Client) -> None:
    headers = {"Content-Encoding": "gzip"}
    batched = json.dumps(BODY | {"image": [BODY["image"]] * 2}).encode()
    lines = gzip.compress((TEXT + b"\n") * 100)
    ended = api.post(JOBS, content=TEXT).json()["id"]
    form = b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc\r\n--B--\r\n'

    assert api.post(BATCHED, content=gzip.compress(batched), headers=headers).status_code == 202
    bulk = api.post(f"{JOBS}:bulk", content=pieces(lines, 100), headers=headers)
    assert [json.loads(line)["status"] for line in bulk.text.splitlines()] == ["starting"] * 100
    collect = gzip.compress(json.dumps({"ids": [ended], "delete": True}).encode())
    assert api.post("/api/jobs:collect", content=collect, headers=headers).json() == {"deleted": 1}
    kind = {"Content-Type": "multipart/form-data; boundary=B"}
    assert api.post("/api/files", content=gzip.compress(form), headers=headers | kind).json()["bytes"] == 3


@pytest.mark.parametrize("encoding", ["br", "zstd", "compress", "gzip, gzip", "gzip, br", "résumé"])
def test_another_encoding_is_refused_by_name(api: httpx.Client, encoding: str) -> None:
    header: Any = {"Content-Encoding": encoding.encode("latin-1")}

    for path in (JOBS, BATCHED, f"{JOBS}:bulk", "/api/jobs:collect"):
        answer = api.post(path, content=TEXT, headers=header)

        assert refusal(answer) == (415, "unsupported_encoding")
        assert encoding.split(",")[0] in answer.json()["detail"]
        assert answer.headers["accept-encoding"] == "gzip, deflate"


def test_broken_encodings_are_invalid_input(api: httpx.Client) -> None:
    whole = gzip.compress(TEXT)
    for encoding, body in (
        ("gzip", TEXT),
        ("gzip", whole[:-1]),
        ("gzip", whole[:20]),
        ("gzip", b""),
        ("gzip", whole + b"x"),
        ("gzip", whole[:-8] + bytes(8)),
        ("deflate", zlib.compress(TEXT)[:-3]),
        ("deflate", zlib.compress(TEXT) * 2),
        ("deflate", b"x"),
    ):
        answer = api.post(JOBS, content=body, headers={"Content-Encoding": encoding})
        assert refusal(answer) == (422, "invalid_input"), (encoding, body)
        assert encoding in answer.json()["detail"]
    hint = api.post(JOBS, content=whole)
    assert refusal(hint) == (422, "invalid_input")
    assert "Content-Encoding: gzip" in hint.json()["detail"]


def test_the_limit_is_that_of_what_comes_out(settings: Settings) -> None:
    small = settings.model_copy(update={"max_body_bytes": 300 * KIB, "max_file_bytes": 300 * KIB})
    headers = {"Content-Encoding": "gzip"}
    bomb = gzip.compress(b'{"a":"' + bytes(1000) * 20_000 + b'"}')
    form = b'--B\r\nContent-Disposition: form-data; name="file"\r\n\r\n' + bytes(400 * KIB) + b"\r\n--B--\r\n"
    assert len(bomb) < 50 * KIB
    with ApiServer(small) as server, httpx.Client(base_url=server.url) as api:
        for body in (bomb, bomb * 3):
            assert refusal(api.post(JOBS, content=body, headers=headers)) == (413, "body_too_large")
        kind = {"Content-Type": "multipart/form-data; boundary=B"}
        uploaded = api.post("/api/files", content=gzip.compress(form), headers=headers | kind)
        assert refusal(uploaded) == (413, "body_too_large")
        # A line that is too long does not stop the lines after it.
        rows = gzip.compress(bytes(1000) * 20_000 + b"\n" + TEXT + b"\n")
        bulk = [
            json.loads(line)
            for line in api.post(f"{JOBS}:bulk", content=rows, headers=headers).text.splitlines()
        ]
        assert (bulk[0]["error"]["code"], bulk[1]["status"]) == ("body_too_large", "starting")


def test_a_broken_bulk_submit_keeps_what_came_before(api: httpx.Client) -> None:
    body = gzip.compress((TEXT + b"\n") * 3)[:-4]

    answer = api.post(f"{JOBS}:bulk", content=body, headers={"Content-Encoding": "gzip"})

    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line.get("status") for line in lines] == ["starting"] * 3 + [None]
    assert lines[3]["error"]["code"] == "invalid_input"


def test_a_byte_order_mark_is_left_out(api: httpx.Client, raw_redis: redis.Redis) -> None:
    answers = [api.post(JOBS, content=MARK + TEXT)]
    answers += [api.post(JOBS, content=gzip.compress(MARK + TEXT), headers={"Content-Encoding": "gzip"})]
    bulk = api.post(f"{JOBS}:bulk", content=MARK + TEXT + b"\r\n" + MARK + TEXT + b"\n" + TEXT)

    assert [answer.status_code for answer in answers] == [202, 202]
    ids = [answer.json()["id"] for answer in answers]
    ids += [json.loads(line)["id"] for line in bulk.text.splitlines()]
    assert [raw_redis.get(keys.INPUT + job_id) for job_id in ids] == [TEXT] * 5
    collected = api.post(
        "/api/jobs:collect", content=MARK + json.dumps({"ids": ids, "delete": True}).encode()
    )
    assert collected.json() == {"deleted": 5}


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "latin-1"])
def test_another_encoding_of_text_is_named(api: httpx.Client, encoding: str) -> None:
    body = '{"image": "a", "classes": ["Käse"]}'.encode(encoding)

    answer = api.post(JOBS, content=body)
    lines = api.post(f"{JOBS}:bulk", content=body + "\n".encode(encoding) + body).text.splitlines()

    assert refusal(answer) == (422, "invalid_input")
    assert "UTF-8" in answer.json()["detail"]
    assert "UTF-8" in json.loads(lines[0])["error"]["message"]


def test_a_slash_at_the_end_of_an_address_changes_nothing(api: httpx.Client) -> None:
    job_id = api.post(f"{JOBS}/", content=TEXT, follow_redirects=False).raise_for_status().json()["id"]
    batched = json.dumps(BODY | {"image": [BODY["image"]]}).encode()

    assert api.post(f"{BATCHED}//", content=batched).status_code == 202
    assert api.post(f"{JOBS}:bulk/", content=TEXT).text.count("starting") == 1
    for path in ("/health/live", "/docs", "/openapi.json", "/api/tasks", "/api/jobs", f"/api/jobs/{job_id}"):
        with_slash, without = api.get(f"{path}/"), api.get(path)
        assert (with_slash.status_code, without.status_code) == (200, 200)
        assert api.head(f"{path}/").status_code == 200
    assert api.get("/api/jobs/?limit=1").json()["jobs"]
    assert api.post(f"/api/jobs/{job_id}/cancel/").status_code == 202
    assert api.delete(f"/api/jobs/{job_id}/").status_code == 204
    uploaded = api.post("/api/files/", files={"file": b"abc"}).json()["id"]
    assert api.get(f"/api/files/{uploaded}/").content == b"abc"
    assert refusal(api.put("/api/jobs/")) == (405, "method_not_allowed")
    assert refusal(api.get("/")) == (404, "not_found")


def test_a_slash_at_the_end_opens_no_other_address(settings: Settings) -> None:
    with (
        ApiServer(settings.model_copy(update={"auth": "on"})) as server,
        httpx.Client(base_url=server.url) as api,
    ):
        for path in ("/api/tasks/", "/metrics/", "//health/live/../../api/tasks", "/docs/../api/tasks"):
            assert api.get(path).status_code in (401, 404)
        assert api.get("/health/live/").status_code == 200


def test_private_answers_are_not_kept_and_no_answer_is_guessed_at(api: httpx.Client) -> None:
    job_id = api.post(JOBS, content=TEXT).json()["id"]
    uploaded = api.post("/api/files", files={"file": b"<script>"}).json()["id"]

    for path in (
        f"/api/jobs/{job_id}",
        f"/api/jobs/{job_id}/result",
        "/api/jobs",
        f"/api/files/{uploaded}",
        "/api/webhooks/secret",
        f"/api/jobs/{job_id}/webhook-deliveries",
        "/api/workers",
        "/metrics",
        "/openapi.json",
        "/docs",
        "/nowhere",
    ):
        headers = api.get(path).headers
        assert headers["cache-control"] == "no-store", path
        assert headers["x-content-type-options"] == "nosniff"
        assert len(headers.get_list("cache-control")) == 1
        assert len(headers.get_list("x-content-type-options")) == 1
    with api.stream("GET", f"/api/jobs/{job_id}/events") as events:
        assert events.headers["cache-control"] == "no-store"
    assert api.post(JOBS, content=TEXT).headers["cache-control"] == "no-store"


def test_the_page_may_run_its_own_scripts_and_no_others(api: httpx.Client) -> None:
    for path in ("/docs", "/docs/oauth2-redirect"):
        page = api.get(path)
        policy = dict(
            part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";")
        )
        (script,) = re.findall("<script>(.*?)</script>", page.text, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert policy["script-src"].split() == ["'self'", f"'sha256-{digest}'"]
        assert (policy["default-src"], policy["frame-ancestors"]) == ("'none'", "'none'")
        assert policy["connect-src"] == "'self'"
    sources = re.findall(r'(?:src|href)="([^"]+)"', api.get("/docs").text)
    assert len(sources) >= 3
    for source in sources:
        asset = api.get(source)
        assert (asset.status_code, asset.headers["x-content-type-options"]) == (200, "nosniff")
        assert len(asset.content) == int(asset.headers["content-length"])
        again = api.get(source, headers={"If-None-Match": asset.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert api.head(source).headers["content-length"] == asset.headers["content-length"]
    assert api.post("/static-offline-docs/swagger-ui.css").status_code == 405
    assert api.get("/static-offline-docs/%2e%2e/core.py").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {"metadata": {"a": [1] * 60_000}},
        {"tags": [1] * 60_000},
        {"image": [1] * 60_000},
        {"image": [[]] * 60_000},
        {"config": {"a": [1] * 60_000}},
        {"classes": [None] * 60_000},
    ],
    ids=lambda body: next(iter(body)),
)
def test_a_body_with_more_values_than_its_task_can_use_is_refused(
    api: httpx.Client, body: dict[str, Any]
) -> None:
    for path, content in ((JOBS, BODY | body), (f"{JOBS}:bulk", BODY | body)):
        answer = api.post(path, content=json.dumps(content, separators=(",", ":")).encode())
        assert "more than 5104 values" in answer.text
        assert "invalid_input" in answer.text


def run_in_room(settings: Settings, *steps: tuple[str, int]) -> list[str]:
    """Takes places of these sizes at once; what became of each."""

    async def one(room: BodyRoom, size: int) -> str:
        with Place(room) as place:
            try:
                await place.resize(size)
            except ModelmillError as error:
                return f"{error.code} {error.retry_after_s}"
            await asyncio.sleep(0.05)
            return "held"

    async def run() -> list[str]:
        room = BodyRoom(settings)
        ends = await asyncio.gather(*(one(room, size) for _, size in steps))
        assert room.taken_bytes == 0
        return list(ends)

    return asyncio.run(run())


ROOM = Settings(max_body_bytes=4 * KIB * KIB, max_bodies_bytes=8 * KIB * KIB)


def test_bodies_wait_for_room_in_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    large = ("large", 4 * KIB * KIB)
    assert run_in_room(ROOM, *[large] * 5) == ["held"] * 5
    # Small ones have room of their own.
    assert run_in_room(ROOM, *[large] * 3, *[("small", 200 * KIB)] * 8) == ["held"] * 11
    monkeypatch.setattr(room_module, "WAIT_S", 0.01)
    assert run_in_room(ROOM, *[large] * 3) == ["held", "server_busy 2", "server_busy 2"]
    assert run_in_room(ROOM, *[("small", 250 * KIB)] * 40) == ["held"] * 32 + ["server_busy 2"] * 8


def test_a_place_that_shrinks_or_is_given_up_leaves_no_trace() -> None:
    async def run() -> None:
        room = BodyRoom(ROOM)
        first, second = Place(room), Place(room)
        await first.resize(4 * KIB * KIB)
        waits = asyncio.create_task(second.resize(3 * KIB * KIB))
        await asyncio.sleep(0)
        assert not waits.done()
        waits.cancel()
        await asyncio.wait((waits,))
        third = asyncio.create_task(second.resize(3 * KIB * KIB))
        await asyncio.sleep(0)
        first.shrink(2 * KIB * KIB)
        await third
        assert room.taken_bytes == 5 * KIB * KIB
        first.leave()
        first.leave()
        second.leave()
        assert room.taken_bytes == 0

    asyncio.run(run())


def test_requests_leave_no_room_taken(settings: Settings) -> None:
    small = settings.model_copy(update={"max_body_bytes": KIB * KIB, "max_bodies_bytes": 2 * KIB * KIB})
    big = json.dumps(BODY | {"metadata": {"a": "x" * 900 * KIB}}).encode()
    with ApiServer(small) as server, httpx.Client(base_url=server.url) as api:
        for _ in range(6):
            for content in (big, pieces(big, 64 * KIB)):
                assert api.post(JOBS, content=content).status_code == 422
            rows = api.post(f"{JOBS}:bulk", content=(big + b"\n") * 3 + TEXT).text.splitlines()
            assert [json.loads(row).get("status") for row in rows] == [None, None, None, "starting"]
            assert api.post("/api/files", files={"file": bytes(900 * KIB)}).status_code == 201
        assert api.post(JOBS, content=TEXT, headers={"Prefer": "wait=0"}).status_code == 202
