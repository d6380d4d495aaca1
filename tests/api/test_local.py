"""An API without keys: which clients it answers, and which web pages may call it."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import redis

from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.store import keys
from modelmill.store.callers import KeyRing
from modelmill_api.app import create_app
from modelmill_api.middleware import auth
from tests.support.api import BODY, JOBS
from tests.support.servers import ApiServer


def test_without_keys_this_machine_is_answered_and_no_page_with_a_name_of_its_own(api: httpx.Client) -> None:
    for host in ("localhost", "LocalHost:8000", "127.0.0.1:9", "[::1]:8000", "127.8.9.10"):
        assert api.get("/api/tasks", headers={"Host": host}).status_code == 200, host
    foreign = (
        "evil.example",
        "evil.example:80",
        "localhost.evil.example",
        "0.0.0.0:8000",
        "10.0.0.1",
        "[::2]",
    )
    for host in foreign:
        refused = api.get("/api/tasks", headers={"Host": host})
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), host
        assert "MODELMILL_AUTH" in refused.json()["detail"]
        assert api.get("/health/live", headers={"Host": host}).status_code == 200


CROSS_SITE: list[dict[str, str]] = [
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://127.0.0.1:3000", "Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "cross-site"},
]


def test_without_keys_no_web_page_submits_jobs(api: httpx.Client, raw_redis: redis.Redis) -> None:
    for headers in CROSS_SITE:
        refused = api.post(JOBS, json=BODY, headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (403, "forbidden"), headers
        assert "MODELMILL_CORS_ORIGINS" in refused.json()["detail"]
        assert api.get("/api/tasks", headers=headers).status_code == 200, "which the page cannot read"
    assert raw_redis.hget(keys.TOTALS, "jobs") is None


def test_without_keys_the_page_of_the_documentation_submits_jobs(api: httpx.Client) -> None:
    own = str(api.base_url).rstrip("/")
    assert api.post(JOBS, json=BODY, headers={"Origin": own}).status_code == 202
    headers = {"Origin": own, "Sec-Fetch-Site": "same-origin"}
    assert api.post(JOBS, json=BODY, headers=headers).status_code == 202


@pytest.mark.parametrize(
    ("server", "is_local"),
    [
        (("127.0.0.1", 8000), True),
        (("::1", 8000), True),
        (("::ffff:127.0.0.1", 8000), True),
        (("/run/modelmill.sock", None), True),
        (None, True),
        (("192.0.2.7", 8000), False),
        (("::ffff:192.0.2.7", 8000), False),
        (("2001:db8::7", 8000), False),
    ],
)
def test_without_keys_only_loopback_is_served_whatever_it_is_bound_to(
    settings: Settings, server: tuple[str, int | None] | None, is_local: bool
) -> None:
    scope = {"method": "GET", "headers": [(b"host", b"localhost")], "server": server}
    gate = auth.LocalGate(settings)
    if is_local:
        asyncio.run(gate.check(scope))
    else:
        with pytest.raises(ModelmillError, match="MODELMILL_AUTH=on") as refused:
            asyncio.run(gate.check(scope))
        assert refused.value.code is ErrorCode.FORBIDDEN
    asyncio.run(auth.LocalGate(settings.model_copy(update={"allow_no_auth": True})).check(scope))


@pytest.mark.parametrize(
    ("host", "mode", "on"),
    [
        ("127.0.0.1", None, False),
        ("localhost", None, False),
        ("::1", None, False),
        ("127.0.0.1", "on", True),
        ("127.0.0.1", "off", False),
        ("0.0.0.0", None, True),
        ("::", None, True),
        ("mill.example", None, True),
        ("10.0.0.7", "on", True),
    ],
)
def test_keys_are_on_beyond_loopback(settings: Settings, host: str, mode: str | None, on: bool) -> None:
    assert auth.keys_are_on(settings.model_copy(update={"host": host, "auth": mode})) is on


def test_keys_are_not_turned_off_beyond_loopback_by_mistake(settings: Settings) -> None:
    for host in ("0.0.0.0", "::", "10.0.0.7", "mill.example"):
        off = settings.model_copy(update={"host": host, "auth": "off"})
        with pytest.raises(ConfigError, match="MODELMILL_AUTH") as refused:
            create_app(off)
        assert "MODELMILL_HOST" in str(refused.value)
        assert "MODELMILL_ALLOW_NO_AUTH" in str(refused.value)
        assert not auth.keys_are_on(off.model_copy(update={"allow_no_auth": True}))


def test_web_pages_that_are_named_may_call(settings: Settings, ring: KeyRing) -> None:
    app, other = "https://app.example", "https://evil.example"
    on = settings.model_copy(update={"auth": "on", "cors_origins": f" {app} ,https://b.example"})
    with ApiServer(on) as server, httpx.Client(base_url=server.url) as client:
        asked = {
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,idempotency-key,prefer,last-event-id",
        }
        preflight = client.options(JOBS, headers={"Origin": app} | asked)
        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == app
        assert "access-control-allow-credentials" not in preflight.headers
        assert client.options(JOBS, headers={"Origin": other} | asked).status_code == 400
        token = {"Authorization": f"Bearer {ring.create('page')}"}
        done = client.post(JOBS, json=BODY, headers={"Origin": app} | token)
        assert done.status_code == 202
        exposed = done.headers["access-control-expose-headers"]
        for name in ("Location", "Retry-After", "RateLimit", "RateLimit-Policy", "Preference-Applied"):
            assert name in exposed.split(", ")
        assert client.get("/api/tasks", headers={"Origin": app}).headers["access-control-allow-origin"] == app
        refused = client.get("/api/tasks", headers={"Origin": other} | token)
        assert "access-control-allow-origin" not in refused.headers


def test_without_keys_pages_that_are_named_may_submit(settings: Settings) -> None:
    with (
        ApiServer(settings.model_copy(update={"cors_origins": "http://localhost:3000"})) as server,
        httpx.Client(base_url=server.url) as client,
    ):
        headers = {"Origin": "http://localhost:3000", "Sec-Fetch-Site": "same-site"}
        assert client.post(JOBS, json=BODY, headers=headers).status_code == 202
        headers["Origin"] = "http://localhost:3001"
        assert client.post(JOBS, json=BODY, headers=headers).status_code == 403


@pytest.mark.parametrize("origins", ["app.example", "https://app.example/", "https://*.example", "null"])
def test_what_is_no_origin_is_refused_at_start(settings: Settings, origins: str) -> None:
    with pytest.raises(ConfigError, match="MODELMILL_CORS_ORIGINS"):
        auth.cors_origins(settings.model_copy(update={"cors_origins": origins}))
