"""What is said about a Redis server that may lose jobs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from modelmill import processes
from modelmill.embedded import EmbeddedServer
from modelmill.errors import ConfigError
from modelmill.settings import Settings
from modelmill.store import StoreWarning, StoreWarningCode
from modelmill.store.server_checks import check_server, warnings_of
from tests.support.servers import ApiServer, Valkey

SOUND = {"appendonly": "yes", "appendfsync": "everysec", "maxmemory": "1gb", "maxmemory-policy": "noeviction"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    options = [part for name, value in SOUND.items() for part in (f"--{name}", value)]
    found = Valkey(tmp_path_factory.mktemp("checked"), *options)
    yield found
    found.stop()


@pytest.fixture
def client(server: Valkey) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(server.url) as found:
        yield found
        found.acl_setuser("default", enabled=True, nopass=True, commands=["+@all"], keys=["*"])
        for name, value in SOUND.items():
            found.config_set(name, value)


def codes(warnings: list[StoreWarning]) -> list[str]:
    return [warning.code.value for warning in warnings]


def check(server: Valkey, *, allow_eviction: bool = False) -> list[StoreWarning]:
    return check_server(server.url, allow_eviction=allow_eviction)


def test_a_sound_server_and_the_embedded_one_raise_no_warning(
    server: Valkey, client: redis.Redis, tmp_path: Path
) -> None:
    assert check(server) == []

    with EmbeddedServer(tmp_path) as embedded:
        assert check_server(embedded.url, allow_eviction=False) == []


@pytest.mark.parametrize(
    ("name", "value", "code", "advice"),
    [
        ("appendonly", "no", "no_append_only_file", "Set appendonly to yes."),
        ("appendfsync", "no", "no_fsync", "Set appendfsync to everysec or always."),
        ("maxmemory", "0", "no_memory_limit", "Set maxmemory below the memory of the machine."),
    ],
)
def test_what_may_lose_jobs_is_a_warning(
    name: str, value: str, code: str, advice: str, server: Valkey, client: redis.Redis
) -> None:
    client.config_set(name, value)

    (warning,) = check(server)

    assert warning.code == code
    assert warning.message.endswith(advice)


@pytest.mark.parametrize(
    "policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru", "volatile-ttl"]
)
def test_a_server_that_evicts_is_refused_unless_told_otherwise(
    policy: str, server: Valkey, client: redis.Redis
) -> None:
    client.config_set("maxmemory-policy", policy)

    with pytest.raises(ConfigError, match=f"maxmemory-policy {policy}.*MODELMILL_ALLOW_EVICTION=true"):
        check(server)

    assert codes(check(server, allow_eviction=True)) == ["eviction"]


def test_a_replica_is_a_warning(server: Valkey, client: redis.Redis, tmp_path: Path) -> None:
    replica = Valkey(
        tmp_path, "--replicaof", "127.0.0.1", str(server.port), "--maxmemory", "1gb", "--appendonly", "yes"
    )
    try:
        assert codes(check(replica)) == ["replica"]
        with ApiServer(Settings(redis_url=replica.url)) as api:
            answer = httpx.get(f"{api.url}/health/ready")
            assert (answer.status_code, answer.json()["status"]) == (503, "unavailable")
            assert [warning["code"] for warning in answer.json()["warnings"]] == ["replica"]
            # It is asked again each time: it may have become the primary.
            with redis.Redis.from_url(replica.url) as client:
                client.replicaof("NO", "ONE")
            answer = httpx.get(f"{api.url}/health/ready")
            assert (answer.status_code, answer.json()["warnings"]) == (200, [])
    finally:
        replica.stop()


def test_a_cluster_is_refused(tmp_path: Path) -> None:
    # By default, the port of the cluster is 10000 higher, which may be none.
    bus = str(processes.free_port())
    member = Valkey(tmp_path, "--cluster-enabled", "yes", "--cluster-port", bus)
    try:
        with pytest.raises(ConfigError, match="part of a cluster, and Modelmill needs one primary"):
            check_server(member.url, allow_eviction=True)
    finally:
        member.stop()


def test_a_server_that_does_not_tell_is_taken(
    server: Valkey, client: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    client.config_set("maxmemory-policy", "allkeys-lru")
    client.acl_setuser("guest", enabled=True, nopass=True, commands=["+@all", "-info", "-config"], keys=["*"])
    guest = server.url.replace("//", "//guest:any@")
    caplog.set_level("INFO")

    assert check_server(guest, allow_eviction=False) == []
    assert "could not be checked" in caplog.text
    with ApiServer(Settings(redis_url=guest)) as api:
        answer = httpx.get(f"{api.url}/health/ready")
    assert (answer.status_code, answer.json()["warnings"]) == (200, [])

    client.acl_setuser("guest", enabled=True, nopass=True, commands=["+info"], keys=["*"])
    client.config_set("maxmemory-policy", "noeviction")
    client.config_set("appendfsync", "no")
    assert check_server(guest, allow_eviction=False) == []  # only CONFIG would tell


def test_a_server_that_does_not_answer_is_waited_for() -> None:
    assert check_server("redis://127.0.0.1:1/0", allow_eviction=False) == []


def test_versions_are_compared_as_numbers() -> None:
    assert codes(warnings_of({"redis_version": "6.2.14"})) == ["old_version"]
    for version in ("7.0.0", "7.2.4", "10.0.1", "255.255.255", ""):
        assert warnings_of({"redis_version": version}) == []


def test_readiness_and_metrics_show_what_was_found_and_ask_once_a_minute(
    server: Valkey, client: redis.Redis
) -> None:
    client.config_set("appendonly", "no")
    client.config_resetstat()
    with ApiServer(Settings(redis_url=server.url)) as api:
        for _ in range(3):
            ready = httpx.get(f"{api.url}/health/ready").json()
            metrics = httpx.get(f"{api.url}/metrics").text
    asked = client.info("commandstats")["cmdstat_info"]["calls"]

    assert ready["status"] == "ready"
    (warning,) = ready["warnings"]
    assert warning["code"] == "no_append_only_file"
    assert warning["message"].startswith("The job store has appendonly no")
    for code in StoreWarningCode:
        value = 1.0 if code == "no_append_only_file" else 0.0
        assert f'modelmill_store_warning{{code="{code.value}"}} {value}' in metrics
    assert asked == 1
