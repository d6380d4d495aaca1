"""A whole system on this machine, for a measurement: job store, API, workers."""

from __future__ import annotations

import base64
import io
import json
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import httpx
import redis
from PIL import Image

from modelmill import processes
from modelmill.embedded import EmbeddedServer
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ApiStore, ClaimRequest, Outcome, Submission, WorkerStore, keys, scripts

TASK = "zero-shot-image-classification"
MODELS = Path(__file__).parent / "models.toml"


@dataclass(frozen=True, slots=True)
class System:
    """Where the parts answer, and the processes that were started for them."""

    url: str
    port: int
    redis_url: str
    store_pid: int
    api_pid: int
    supervisor_pid: int
    """``modelmill worker``; the nodes announce their processes."""


@contextmanager
def running(
    devices: str,
    preload: str,
    *,
    models_file: Path = MODELS,
    served: str = "",
    settings: Mapping[str, str] | None = None,
    program: Sequence[str] = (),
) -> Iterator[System]:
    """Starts everything, waits until ``preload`` is loaded on every node, and stops it again.

    Args:
        devices: As for ``modelmill worker``.
        preload: One model; with none, the nodes are waited for and nothing is loaded.
        models_file: Models that are served in addition to the built-in catalogue.
        served: Models that the workers serve, separated by commas; all when empty.
        settings: ``MODELMILL_*`` variables for API and workers.
        program: The command ``modelmill`` of another checkout; this one's when empty.
    """
    program = program or processes.python("-m", "modelmill_cli")
    nodes = int(devices.partition(":")[2] or 1)
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="modelmill-bench-")))
        server = cleanup.enter_context(EmbeddedServer(folder))
        port = processes.free_port()
        log = cleanup.enter_context((folder / "log").open("ab"))
        environment = {
            **(settings or {}),
            "MODELMILL_REDIS_URL": server.url,
            "MODELMILL_MODELS_FILE": str(models_file),
        }
        pids = []
        for command in (
            ["api", "--port", str(port)],
            ["worker", "--devices", devices, "--preload", preload, "--models", served],
        ):
            process = processes.start([*program, *command], environment, log)
            cleanup.callback(processes.stop, process, 40)
            pids.append(process.pid)
        url = f"http://127.0.0.1:{port}"
        _wait_ready(url, preload, nodes)
        yield System(url, port, server.url, server.pid, *pids)


class Backlog:
    """Jobs that wait in a server, and both job stores before it."""

    result = b'{"probabilities":[0.5,0.5]}'
    # As a worker writes them.
    _timings = dict.fromkeys(("queued_s", "load_s", "preprocess_s", "forward_s", "postprocess_s"), 0.0123)
    _details = {"node": "worker-1234-cpu0", "device": "cpu", "batch_size": 16, "timings": _timings}  # noqa: RUF012

    def __init__(self, redis_url: str) -> None:
        # A short lease: the notes of claims go a few leases after, and are not to be counted as jobs.
        self._settings = Settings(
            redis_url=redis_url, max_queue_depth=10**9, max_queued_bytes=10**12, lease_s=1, result_ttl_s=3600
        )
        self.api, self.worker = ApiStore(self._settings), WorkerStore(self._settings)
        self.redis = redis.Redis.from_url(redis_url)

    def fill(self, count: int, body: bytes, models: Sequence[str]) -> list[str]:
        """Submits as the API's store does, but many jobs in a round trip; the ids."""
        script, ids = scripts.script("submit"), []
        self.redis.script_load(script.source)
        at_once = max(1, min(500, 4_000_000 // len(body)))
        for start in range(0, count, at_once):
            pipe = self.redis.pipeline(transaction=False)
            for index in range(start, min(start + at_once, count)):
                job = Submission(str(uuid.uuid4()), TASK, models[index % len(models)], body)
                pipe.set(keys.INPUT + job.id, job.body, ex=scripts.ORPHAN_TTL_S, nx=True)
                pipe.evalsha(script.sha, 0, *cast("list[str]", scripts.pack_submit(job, self._settings)))
                ids.append(job.id)
            for accepted in map(scripts.read_submit, pipe.execute()[1::2]):
                assert accepted.verdict == "accepted", accepted
        return ids

    def claim(self, model: str, count: int) -> list[Outcome]:
        """Claims the oldest jobs, and says how they will end."""
        claimed = self.worker.claim(
            ClaimRequest(model, str(uuid.uuid4()), "worker-1234-cpu0", count, 2**30)
        ).jobs
        assert len(claimed) == count, claimed
        return [
            Outcome(job.id, job.fence, Status.COMPLETE, self.result, details=self._details) for job in claimed
        ]

    def used_bytes(self) -> int:
        """Memory that the server uses once it rewrites no file and has forgotten all claims."""
        while self.redis.info("persistence")["aof_rewrite_in_progress"] or list(
            self.redis.scan_iter(keys.CLAIM + "*", count=10_000)
        ):
            time.sleep(0.2)
        self.redis.connection_pool.disconnect()
        return int(self.redis.info("memory")["used_memory"])


@contextmanager
def backlog() -> Iterator[Backlog]:
    """A server of its own for one backlog."""
    with (
        tempfile.TemporaryDirectory(prefix="modelmill-bench-") as folder,
        EmbeddedServer(Path(folder)) as server,
    ):
        yield Backlog(server.url)


def small_body() -> bytes:
    """The smallest body that is a valid job of zero-shot-image-classification: an image of one pixel."""
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "png")
    image = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    return json.dumps({"image": image, "classes": ["a", "b"]}).encode()


def _wait_ready(url: str, model: str, nodes: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        try:
            if _ready_nodes(url, model) == nodes:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise TimeoutError(f"{model or 'a worker'} was not ready on {nodes} nodes")


def _ready_nodes(url: str, model: str) -> int:
    if not model:
        workers: dict[str, int] = httpx.get(f"{url}/health/ready").json()["models"]
        return max(workers.values(), default=0)
    status = httpx.get(f"{url}/api/models/{model}/status").json()
    return sum(worker.get("status") == "running" for worker in status.get("workers", {}).values())
