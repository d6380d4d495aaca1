"""API keys, and which caller finds which jobs."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
import time
import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import redis

from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.store import ApiStore, ClaimRequest, WorkerStore, keys
from modelmill.store.callers import KeyRing, parse_token
from modelmill_api.middleware import auth
from modelmill_tasks.shared.examples import CAT
from tests.support.api import BATCHED, BODY, JOBS, finish
from tests.support.callers import People
from tests.support.processes import wait_until
from tests.support.servers import ApiServer, Valkey

TASK = "zero-shot-image-classification"


def answer(response: httpx.Response) -> tuple[int, bytes, dict[str, str]]:
    """A response without the time at which it was sent."""
    return response.status_code, response.content, dict(response.headers) | {"date": ""}


def test_a_key_opens_what_is_closed_without_one(people: People) -> None:
    stranger, friend = people.with_token(None), people()
    for path in ("/api/tasks", "/api/jobs/x", "/metrics", "/nothing/here"):
        refused = stranger.get(path)
        assert (refused.status_code, refused.json()["code"]) == (401, "unauthenticated")
        assert refused.headers["www-authenticate"] == "Bearer"
        assert refused.headers["content-type"] == "application/problem+json"
    assert stranger.post(JOBS, json=BODY).status_code == 401
    assert friend.get("/api/tasks").status_code == 200
    address = friend.post(JOBS, json=BODY).headers["location"]
    assert friend.get(address).json()["status"] == "starting"


def test_what_is_open_needs_no_key(people: People) -> None:
    stranger = people.with_token(None)
    for path in ("/health/live", "/health/ready", "/docs", "/openapi.json"):
        assert stranger.get(path).status_code == 200, path
    assert stranger.get("/static-offline-docs/swagger-ui.css").status_code == 200


def test_whatever_is_wrong_with_a_key_the_answer_is_the_same(
    people: People, ring: KeyRing, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    token, revoked = ring.create("good"), ring.create("revoked")
    ring.revoke("revoked")
    key_id, secret = parse_token(token) or ("", "")
    other = ("a" if secret[0] != "a" else "b") + secret[1:]
    wrong = ["x", "mm_", secret, f"mm_{key_id}_{other}", f"mm_{'a' * 12}_{secret}", token + "x", revoked]
    told = {answer(people.with_token(None).get("/api/tasks"))[:2]}
    client = people.with_token(None)
    for text in wrong:
        refused = client.get("/api/tasks", headers={"Authorization": f"Bearer {text}"})
        told.add(answer(refused)[:2])
    for header in (f"Basic {token}", f"bearer{token}", f"Bearer {token}, Bearer {token}"):
        told.add(answer(client.get("/api/tasks", headers={"Authorization": header}))[:2])
    twice = client.get(
        "/api/tasks", headers=[("Authorization", f"Bearer {token}"), ("Authorization", "Bearer x")]
    )
    told.add(answer(twice)[:2])
    ((status, body),) = told
    assert status == 401
    assert people.with_token(token).get("/api/tasks").status_code == 200
    seen = caplog.text + body.decode()
    assert not [text for text in (secret, other, token, revoked) if text in seen]


def test_a_revoked_key_is_refused_within_two_seconds(people: People, ring: KeyRing) -> None:
    client = people("short-lived")
    assert client.get("/api/tasks").status_code == 200
    ring.revoke("short-lived")
    revoked_at = time.monotonic()
    wait_until(lambda: client.get("/api/tasks").status_code == 401, 10, "the refusal")
    assert time.monotonic() - revoked_at < auth.KEY_TTL_S + 0.5


def everything_in(client: redis.Redis) -> str:
    """All keys and values of a server."""
    read: dict[bytes, Callable[[Any], Any]] = {
        b"string": client.get,
        b"hash": client.hgetall,
        b"set": client.smembers,
        b"zset": lambda key: client.zrange(key, 0, -1),
        b"list": lambda key: client.lrange(key, 0, -1),
        b"stream": client.xrange,
    }
    return "\n".join(f"{key!r} {read[cast('bytes', client.type(key))](key)!r}" for key in client.scan_iter())


def test_the_secret_of_a_key_is_nowhere_in_redis(
    people: People, ring: KeyRing, raw_redis: redis.Redis
) -> None:
    token = ring.create("well kept")
    assert people.with_token(token).post(JOBS, json=BODY).status_code == 202
    key_id, secret = parse_token(token) or ("", "")
    stored = everything_in(raw_redis)
    assert secret not in stored
    assert keys.KEY + key_id in stored
    assert len(secret) * 5.95 > 255
    (key,) = ring.list()
    assert (key.name, key.revoked_at) == ("well kept", None)
    assert key.last_used_at is not None
    assert abs(key.last_used_at - time.time()) < 60


def test_names_of_keys_are_for_people_and_not_used_twice(ring: KeyRing) -> None:
    ring.create("app")
    for name in ("app", "", "x" * 65, "two\nlines"):
        with pytest.raises(ConfigError):
            ring.create(name)
    ring.revoke("app")
    with pytest.raises(ConfigError, match="keys list"):
        ring.revoke("app")
    ring.create("app")
    assert [key.revoked_at is None for key in ring.list()] == [False, True]


def test_guesses_fill_neither_the_cache_nor_redis(
    settings: Settings, raw_redis: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth, "CACHED_KEYS", 10)

    def lookups() -> int:
        return int(cast("Any", raw_redis.info("commandstats")).get("cmdstat_hgetall", {"calls": 0})["calls"])

    async def guess() -> None:
        store = ApiStore(settings)
        app = SimpleNamespace(state=SimpleNamespace(modelmill=SimpleNamespace(store=store)))
        gate = auth.KeyGate()

        async def ask(key_id: str) -> None:
            token = f"Bearer mm_{key_id}_{'s' * 43}".encode()
            with pytest.raises(ModelmillError) as refused:
                await gate.check({"headers": [(b"authorization", token)], "app": app})
            assert refused.value.code is ErrorCode.UNAUTHENTICATED

        before = lookups()
        await asyncio.gather(*(ask("a" * 12) for _ in range(50)))
        await ask("a" * 12)
        assert lookups() - before == 1
        for _ in range(30):
            await ask(secrets.token_hex(6))
        assert len(gate._unknown) == 10
        assert not gate._known
        assert not gate._asked
        await store.close()

    asyncio.run(guess())


def test_no_store_is_no_reason_to_let_anybody_in(settings: Settings, own_valkey: Valkey) -> None:
    on = settings.model_copy(update={"auth": "on", "redis_url": own_valkey.url})
    with KeyRing(own_valkey.url) as ring:
        token = ring.create("app")
    with ApiServer(on) as server:
        own_valkey.stop()
        headers = {"Authorization": f"Bearer {token}"}
        refused = httpx.get(f"{server.url}/api/tasks", headers=headers, timeout=30)
    assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
    assert refused.headers["retry-after"] == "2"


def test_admin_keys_manage_and_others_do_not(people: People) -> None:
    plain, admin = people("plain"), people("admin", is_admin=True)
    for method, path in (
        ("GET", "/metrics"),
        ("GET", "/api/workers"),
        ("POST", "/api/models/noop/start"),
        ("POST", "/api/models/noop/stop"),
    ):
        refused = plain.request(method, path)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), path
        assert admin.request(method, path).status_code in (200, 503), path
    assert 'route="/metrics",status="403"' in admin.get("/metrics").text


def fill_in(path: str, id: str) -> str:
    for name, value in (("task", TASK), ("model", "noop"), ("path", "probabilities/0"), ("id", id)):
        path = path.replace(f"{{{name}}}", value).replace(f"{{{name}:path}}", value)
    return path


def test_jobs_of_another_key_do_not_exist_on_any_route(people: People, store: WorkerStore) -> None:
    owner, other, admin = people("owner"), people("other"), people("admin", is_admin=True)
    batched = BODY | {"image": [CAT, CAT]}
    ended = [owner.post(JOBS, json=BODY).json()["id"], owner.post(BATCHED, json=batched).json()["id"]]
    finish(store, result=b'{"probabilities":[1,0]}')
    hooked = BODY | {"webhook": "https://hooks.example/x"}
    waiting = [owner.post(JOBS, json=hooked).json()["id"], owner.post(BATCHED, json=batched).json()["id"]]
    document = owner.get("/openapi.json").json()
    # One task's routes stand for all, because the same functions make them.
    routes = [
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
        if "{id}" in path and "/files/" not in path
        and (not path.startswith("/api/tasks/") or path.startswith((f"/api/tasks/{TASK}", "/api/tasks/{")))
    ]  # fmt: skip
    assert len(routes) >= 4
    for method, path in routes:
        for headers in ({}, {"Prefer": "wait=5"}):
            for client in (other, admin):
                unknown = client.request(method, fill_in(path, str(uuid.uuid4())), headers=headers)
                assert unknown.status_code == 404, (method, path)
                assert unknown.json()["code"] == "job_not_found", (method, path)
                for job in (*ended, *waiting):
                    theirs = client.request(method, fill_in(path, job), headers=headers)
                    assert answer(theirs) == answer(unknown), (method, path)
    assert [owner.get(f"/api/jobs/{job}").json()["status"] for job in ended] == ["complete"] * 2
    assert [owner.get(f"/api/jobs/{job}").json()["status"] for job in waiting] == ["starting"] * 2


def test_listings_show_a_key_its_own_jobs(people: People, store: WorkerStore) -> None:
    owner, other = people("owner"), people("other", is_admin=True)
    ids = [owner.post(JOBS, json=BODY).json()["id"] for _ in range(3)]
    own = other.post(JOBS, json=BODY).json()["id"]
    store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9))
    expected = [(ids[0], "running"), (ids[1], "starting"), (ids[2], "starting")]
    seen = owner.get("/api/models/noop/status").json()["jobs"]
    assert [(job["id"], job["status"]) for job in seen] == expected
    assert other.get("/api/models/noop/status").json()["jobs"] == [{"id": own, "status": "starting"}]
    if owner.get("/openapi.json").json()["paths"].get("/api/jobs"):
        for query in ("", f"?task={TASK}", "?model=noop", "?status=starting", "?limit=100"):
            listed = other.get(f"/api/jobs{query}").json()
            assert ([job["id"] for job in listed["jobs"]], listed["next"]) == ([own], None)
        everything = owner.get("/api/jobs").json()["jobs"]
        assert [job["id"] for job in everything] == ids[::-1]


def test_collecting_finds_and_deletes_nothing_of_another_key(people: People, store: WorkerStore) -> None:
    owner, other = people("owner"), people("other")
    if "/api/jobs:collect" not in owner.get("/openapi.json").json()["paths"]:
        pytest.skip("there is no collecting")
    job, unknown = owner.post(JOBS, json=BODY).json()["id"], str(uuid.uuid4())
    finish(store, result=b'{"probabilities":[1,0]}')
    headers, said = {"Prefer": "wait=5"}, []
    for id in (job, unknown):
        asked = other.post("/api/jobs:collect", json={"ids": [id]}, headers=headers)
        said.append(asked.text.replace(id, "ID"))
    assert said[0] == said[1]
    assert "job_not_found" in said[0]
    assert other.post("/api/jobs:collect", json={"ids": [job], "delete": True}).json() == {"deleted": 0}
    assert owner.get(f"/api/jobs/{job}").json()["status"] == "complete"


def test_files_of_another_key_do_not_exist(people: People) -> None:
    owner, other, admin = people("owner"), people("other"), people("admin", is_admin=True)
    if "/api/files" not in owner.get("/openapi.json").json()["paths"]:
        pytest.skip("there are no files")
    raw = base64.b64decode(CAT.partition(",")[2] or CAT)
    file = owner.post("/api/files", files={"file": ("cat.gif", raw)}).json()["id"]
    unknown = f"file:{uuid.uuid4()}"
    for client in (other, admin):
        for name, nothing in ((file, unknown), (file[5:], unknown[5:])):
            for method in ("GET", "HEAD", "DELETE"):
                theirs = client.request(method, f"/api/files/{name}")
                assert theirs.status_code == 404
                assert answer(theirs) == answer(client.request(method, f"/api/files/{nothing}"))
        told = [client.post(JOBS, json=BODY | {"image": name}) for name in (file, unknown)]
        assert [response.status_code for response in told] == [422, 422]
        assert told[0].text.replace(file, "FILE") == told[1].text.replace(unknown, "FILE")
    assert owner.get(f"/api/files/{file}").content == raw
    assert owner.post(JOBS, json=BODY | {"image": file}).status_code == 202


def test_webhooks_are_signed_with_a_secret_of_the_key(people: People) -> None:
    owner, other = people("owner"), people("other", is_admin=True)
    if "/api/webhooks/secret" not in owner.get("/openapi.json").json()["paths"]:
        pytest.skip("there are no webhooks")
    secret = owner.get("/api/webhooks/secret").json()["key"]
    assert other.get("/api/webhooks/secret").json()["key"] != secret
    assert owner.get("/api/webhooks/secret").json()["key"] == secret


def test_idempotency_keys_belong_to_their_caller(people: People) -> None:
    owner, other = people("owner"), people("other")
    headers = {"Idempotency-Key": "order-1"}
    first = owner.post(JOBS, json=BODY, headers=headers).json()["id"]
    theirs = other.post(JOBS, json=BODY | {"classes": ["x"]}, headers=headers)
    assert theirs.status_code == 202
    assert theirs.json()["id"] != first
    assert owner.post(JOBS, json=BODY, headers=headers).json()["id"] == first
    waited = other.post(JOBS, json=BODY | {"classes": ["x"]}, headers=headers | {"Prefer": "wait=1"})
    assert waited.json()["id"] == theirs.json()["id"]
    conflict = owner.post(JOBS, json=BODY | {"classes": ["x"]}, headers=headers)
    assert (conflict.status_code, conflict.json()["code"]) == (422, "idempotency_conflict")


def test_the_document_says_where_a_key_is_needed(people: People, api: httpx.Client) -> None:
    with_keys, without = people().get("/openapi.json").json(), api.get("/openapi.json").json()
    assert with_keys["components"]["securitySchemes"] == {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in with_keys["paths"].items():
        for operation in operations.values():
            is_open = path.startswith("/health/")
            assert ("security" not in operation) == is_open
            assert ({"401", "403"} <= operation["responses"].keys()) != is_open
    submit = with_keys["paths"][JOBS.replace("noop", "{model}")]["post"]["responses"]
    for status in ("200", "202", "429"):
        assert {"RateLimit", "RateLimit-Policy"} <= submit[status]["headers"].keys()
    assert {"Location", "Preference-Applied"} <= submit["202"]["headers"].keys()
    assert "rate_limited" in submit["429"]["description"]
    assert "securitySchemes" not in without["components"]
    assert "401" not in without["paths"]["/api/tasks"]["get"]["responses"]
