"""The whole system as a user starts it: `modelmill up` in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from modelmill import processes
from tests.conftest import REPOSITORY, wait_until
from tests.fixtures.stand_ins import Mill

NOOP_MODELS = REPOSITORY / "benchmarks" / "models.toml"


@dataclass
class Up:
    """A running `modelmill up`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


def start_up(folder: Path, cache_dir: Path, *options: str) -> Up:
    """Starts `modelmill up` on a free port, with its data in ``folder``."""
    port = processes.free_port()
    log = folder / f"up-{port}.log"
    command = processes.python("-m", "modelmill_cli", "up", "--data-dir", str(folder / "data"))
    environment = {"MODELMILL_CACHE_DIR": str(cache_dir), "MODELMILL_PORT": str(port)}
    with log.open("ab") as output:
        process = processes.start([*command, *options], environment, output)
    host = "[::1]" if "::1" in options else "127.0.0.1"
    up = Up(f"http://{host}:{port}", process, log)
    wait_until(lambda: "Modelmill is up" in log.read_text() or process.poll() is not None, 60, "modelmill up")
    assert process.poll() is None, log.read_text()
    return up


@pytest.fixture(scope="session")
def mill(tmp_path_factory: pytest.TempPathFactory) -> Mill:
    """Specimens for all tasks, made once."""
    return Mill(tmp_path_factory.mktemp("mill"))


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory, cache_dir: Path, mill: Mill) -> Iterator[Up]:
    """One running system for all tests that only use it, with a model for every task."""
    models = mill.write(NOOP_MODELS)
    options = ("--devices", "cpu", "--models-file", str(models), "--preload", "conse-lite0")
    started = start_up(tmp_path_factory.mktemp("up"), cache_dir, *options)
    with httpx.Client(base_url=started.url) as client:
        wait_until(
            lambda: client.get("/api/models/conse-lite0/status").json()["status"] == "running",
            timeout_s=170,
            what="conse-lite0, exported and loaded",
        )
    yield started
    processes.stop(started.process, grace_s=40)
