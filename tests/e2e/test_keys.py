"""`modelmill keys`, and a system that others can reach."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import httpx
import pytest

from modelmill import processes
from modelmill.settings import Settings
from modelmill.states import Lane
from modelmill.store.callers import KeyRing, parse_token
from tests.support.cli import modelmill_here
from tests.support.system import start_up


def keys(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return modelmill_here("keys", *arguments, **environment)


def test_keys_are_made_listed_and_revoked(settings: Settings) -> None:
    store = {"MODELMILL_REDIS_URL": settings.redis_url}
    made = keys(
        *("create", "app", "--lanes", "interactive,normal", "--max-jobs", "50", "--jobs-per-minute", "600"),
        **store,
    )
    assert made.returncode == 0, made.stderr
    assert "shown once" in made.stderr
    token = made.stdout.removesuffix("\n")
    key_id, secret = parse_token(token) or ("", "")
    quiet = keys("create", "operator", "--admin", "--quiet", **store)
    assert parse_token(quiet.stdout.removesuffix("\n"))
    assert quiet.stderr == ""
    with KeyRing(settings.redis_url) as ring:
        app, operator = ring.list()
    assert (app.id, app.is_admin, app.lanes) == (key_id, False, frozenset({Lane.INTERACTIVE, Lane.NORMAL}))
    assert (app.limits.max_jobs, app.limits.jobs_per_minute, app.limits.burst) == (50, 600, 600)
    assert (operator.is_admin, operator.lanes) == (True, frozenset(Lane))
    assert operator.limits.jobs_per_minute is None

    listed, table = keys("list", "--json", **store), keys("list", **store)
    assert [row["name"] for row in json.loads(listed.stdout)] == ["app", "operator"]
    assert "600 a minute" in table.stdout
    assert not [text for text in (secret, app.digest) if text in listed.stdout + table.stdout + made.stderr]

    assert "app" in keys("revoke", key_id, **store).stderr
    with KeyRing(settings.redis_url) as ring:
        assert [key.revoked_at is None for key in ring.list()] == [False, True]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("create", "x", "--lanes", "fast"), "interactive"),
        (("create", "x", "--burst", "5"), "--jobs-per-minute"),
        (("revoke", "nobody"), "nobody"),
        (("list", "--redis-url", "redis://:hidden@127.0.0.1:1/0"), "127.0.0.1:1"),
        (("list", "--data-dir", "/nonexistent"), "/nonexistent"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(
    settings: Settings, arguments: tuple[str, ...], told: str
) -> None:
    done = keys(*arguments, MODELMILL_REDIS_URL=settings.redis_url)
    assert done.returncode == 1
    assert told in done.stderr
    assert "Traceback" not in done.stderr
    assert "hidden" not in done.stderr


def test_up_for_others_asks_for_keys_and_says_how_to_make_one(tmp_path: Path, cache_dir: Path) -> None:
    up = start_up(tmp_path, cache_dir, "--devices", "cpu", "--host", "0.0.0.0")
    try:
        data = str(tmp_path / "data")
        assert f"modelmill keys create NAME --admin --data-dir {data}" in up.log.read_text()
        assert httpx.get(f"{up.url}/health/ready").json()["redis"] == "up"
        assert httpx.get(f"{up.url}/api/workers").status_code == 401
        # The command finds the store by the usual data folder, without --data-dir and without a URL.
        made = keys("create", "me", "--admin", MODELMILL_DATA_DIR=data)
        assert made.returncode == 0, made.stderr
        headers = {"Authorization": f"Bearer {made.stdout.strip()}"}
        # An API without keys refuses this name.
        headers["Host"] = "mill.example"
        assert len(httpx.get(f"{up.url}/api/workers", headers=headers).json()) == 1
    finally:
        assert processes.stop(up.process, 40)


@pytest.mark.parametrize("command", ["up", "api"])
def test_keys_are_not_turned_off_for_others_by_mistake(command: str, tmp_path: Path) -> None:
    arguments = ["--host", "0.0.0.0", "--port", "0"]
    if command == "up":
        arguments += ["--data-dir", str(tmp_path)]
    done = modelmill_here(command, *arguments, MODELMILL_AUTH="off")

    assert done.returncode == 1
    said = " ".join(done.stderr.split())
    assert "MODELMILL_AUTH" in said
    assert "MODELMILL_HOST" in said
    assert "MODELMILL_ALLOW_NO_AUTH=true" in said
    assert "Traceback" not in said
