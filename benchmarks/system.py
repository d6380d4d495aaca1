"""A whole system on this machine, for a measurement: job store, API, workers."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from modelmill import processes
from modelmill.embedded import EmbeddedServer

MODELS = Path(__file__).parent / "models.toml"


@dataclass(frozen=True, slots=True)
class System:
    """Where the parts answer."""

    url: str
    redis_url: str


@contextmanager
def running(devices: str, preload: str) -> Iterator[System]:
    """Starts everything, waits until ``preload`` is loaded on every node, and stops it again."""
    nodes = int(devices.partition(":")[2] or 1)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="modelmill-bench-")))
        server = cleanup.enter_context(EmbeddedServer(folder))
        port = processes.free_port()
        log = cleanup.enter_context((folder / "log").open("ab"))
        environment = {"MODELMILL_REDIS_URL": server.url, "MODELMILL_MODELS_FILE": str(MODELS)}
        for command in (
            ["api", "--port", str(port)],
            ["worker", "--devices", devices, "--preload", preload],
        ):
            process = processes.start(processes.python("-m", "modelmill.cli", *command), environment, log)
            cleanup.callback(processes.stop, process, 40)
        url = f"http://127.0.0.1:{port}"
        _wait_loaded(url, preload, nodes)
        yield System(url, server.url)


def _wait_loaded(url: str, model: str, nodes: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            workers = httpx.get(f"{url}/api/models/{model}/status").json().get("workers", {})
            if sum(worker.get("status") == "running" for worker in workers.values()) == nodes:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{model} was not loaded on {nodes} nodes")
