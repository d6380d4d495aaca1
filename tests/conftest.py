"""Fixtures of all tests: a real Valkey, the API on a real socket, real worker processes."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis

from modelmill import processes
from modelmill.settings import Settings
from modelmill.store import WorkerStore
from tests.support import loggers
from tests.support.paths import TEST_MODELS
from tests.support.processes import kill_tree, wait_until
from tests.support.servers import ApiServer, Valkey, environment_of
from tests.support.workers import Workers, live_nodes


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Replaces xdist's scheduler of files."""
    if config.getvalue("dist") != "loadfile":
        return None
    from tests.support.scheduling import LongestFirst

    return LongestFirst(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    from tests.support.scheduling import in_order

    items[:] = in_order(items)


# The libraries make millions of objects when they are imported and when they read weights, and hardly any
# garbage. With Python's own thresholds, the collector took a fifth of the time of some tests.
gc.set_threshold(100_000, 50, 100)

loggers.install()


@pytest.fixture(scope="module", autouse=True)
def _sparing_the_collector() -> None:
    """Hides the libraries from the garbage collector.

    A model that is closed collects garbage. Each time, the collector walked through all of PyTorch.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _clean_environment() -> Iterator[None]:
    """The settings in your own environment do not reach the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for name in list(os.environ):
            if name.startswith("MODELMILL_"):
                patch.delenv(name)
        yield


@pytest.fixture
def own_valkey(tmp_path: Path) -> Iterator[Valkey]:
    """A server of one test. It keeps its data when it is stopped."""
    server = Valkey(tmp_path, "--appendonly", "yes", "--appendfsync", "always")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def _valkey(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Valkey]:
    server = Valkey(tmp_path_factory.mktemp("valkey"))
    yield server
    server.stop()


@pytest.fixture
def raw_redis(_valkey: Valkey) -> Iterator[redis.Redis]:
    """A client of the session's server, which is empty when a test begins."""
    client = redis.Redis.from_url(_valkey.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of exported models, one for all processes of the session: an export takes seconds."""
    base = tmp_path_factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"


@pytest.fixture
def settings(raw_redis: redis.Redis, _valkey: Valkey, cache_dir: Path) -> Settings:
    """Settings with an empty job store, and with leases that a test can wait for."""
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


@pytest.fixture
def api(settings: Settings) -> Iterator[httpx.Client]:
    """A client of the API; no worker runs."""
    with ApiServer(settings) as server, httpx.Client(base_url=server.url, timeout=30) as client:
        yield client


@pytest.fixture
def start_workers(
    settings: Settings, raw_redis: redis.Redis, tmp_path: Path
) -> Iterator[Callable[..., Workers]]:
    """Starts `modelmill worker` processes. At the end, it kills those that still run."""
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
