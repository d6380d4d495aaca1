"""The version of the key layout: real processes refuse to work on the keys of a later release."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import redis

from modelmill import processes
from modelmill.errors import ConfigError
from modelmill.settings import Settings
from modelmill.store import keys
from modelmill.store.layout import check_layout
from tests.support.processes import wait_until
from tests.support.servers import environment_of

LATER = keys.LAYOUT_VERSION + 1
SENTENCE = (
    f"The job store has version {LATER} of the key layout, but this release knows only versions up to "
    f"{keys.LAYOUT_VERSION}: upgrade this process to the release that wrote it."
)


def test_the_first_process_writes_the_version_and_later_ones_accept_it(
    settings: Settings, raw_redis: redis.Redis
) -> None:
    check_layout(settings.redis_url)
    check_layout(settings.redis_url)

    assert raw_redis.get(keys.LAYOUT) == str(keys.LAYOUT_VERSION).encode()
    assert raw_redis.ttl(keys.LAYOUT) == -1


@pytest.mark.parametrize("memory", [0, 1], ids=["with room", "full"])
def test_the_version_of_an_earlier_release_is_raised(
    settings: Settings, raw_redis: redis.Redis, memory: int
) -> None:
    raw_redis.set(keys.LAYOUT, "1")
    raw_redis.config_set("maxmemory", memory)

    try:
        check_layout(settings.redis_url)
    finally:
        raw_redis.config_set("maxmemory", 0)

    assert raw_redis.get(keys.LAYOUT) == str(keys.LAYOUT_VERSION).encode()
    assert keys.LAYOUT_VERSION > 1


def test_a_server_that_refuses_to_write_is_checked_as_well(
    settings: Settings, raw_redis: redis.Redis
) -> None:
    raw_redis.set(keys.LAYOUT, LATER)
    reader = settings.redis_url.replace("redis://", "redis://reader:word@")
    raw_redis.acl_setuser("reader", enabled=True, passwords=["+word"], commands=["+get"], keys=["*"])

    try:
        with pytest.raises(ConfigError, match="has version"):
            check_layout(reader)
    finally:
        raw_redis.acl_deluser("reader")


@pytest.mark.parametrize("version", [str(LATER), "9000", "2b"])
def test_another_version_is_refused_and_stays(
    settings: Settings, raw_redis: redis.Redis, version: str
) -> None:
    raw_redis.set(keys.LAYOUT, version)

    with pytest.raises(ConfigError, match=f"has version {version} of the key layout"):
        check_layout(settings.redis_url)

    assert raw_redis.get(keys.LAYOUT) == version.encode()


def test_a_full_server_is_checked_as_well(settings: Settings, raw_redis: redis.Redis) -> None:
    raw_redis.set(keys.LAYOUT, LATER)
    raw_redis.config_set("maxmemory", 1)

    try:
        with pytest.raises(ConfigError, match="has version"):
            check_layout(settings.redis_url)
    finally:
        raw_redis.config_set("maxmemory", 0)


def test_a_server_that_does_not_answer_is_not_checked(caplog: pytest.LogCaptureFixture) -> None:
    check_layout(f"redis://127.0.0.1:{processes.free_port()}/0")

    assert "the version of the key layout was not checked" in caplog.text


@pytest.mark.parametrize(
    "command",
    [
        processes.python("-m", "modelmill_cli", "api", "--port", "0"),
        processes.python("-m", "modelmill_cli", "worker", "--devices", "cpu"),
        processes.python("-m", "celery", "-A", "modelmill_worker.app", "worker", "--pool", "prefork"),
    ],
    ids=["api", "worker", "celery"],
)
def test_a_process_refuses_the_keys_of_a_later_release_with_a_sentence(
    settings: Settings, raw_redis: redis.Redis, tmp_path: Path, command: list[str]
) -> None:
    raw_redis.set(keys.LAYOUT, LATER)
    log = tmp_path / "log"

    with log.open("wb") as output:
        process = processes.start(command, environment_of(settings), output)
    try:
        wait_until(lambda: process.poll() is not None, timeout_s=60, what="the end of the process")
    finally:
        processes.stop(process, grace_s=10)

    said = " ".join(log.read_text().split())
    assert process.returncode in (1, 2)
    assert said.count(SENTENCE) == 1
    assert "Traceback" not in said
    assert not raw_redis.exists(keys.NODES)


def test_a_worker_that_knows_the_version_starts_and_writes_it(
    settings: Settings, raw_redis: redis.Redis, tmp_path: Path
) -> None:
    with (tmp_path / "log").open("wb") as output:
        process: subprocess.Popen[bytes] = processes.start(
            processes.python("-m", "modelmill_cli", "worker", "--devices", "cpu"),
            environment_of(settings),
            output,
        )
    try:
        wait_until(lambda: raw_redis.exists(keys.NODES), timeout_s=60, what="the node")
        version = raw_redis.get(keys.LAYOUT)
    finally:
        processes.stop(process, grace_s=30)

    assert version == str(keys.LAYOUT_VERSION).encode()
