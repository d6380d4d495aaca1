"""Real servers that can be killed: Valkey with its append-only file, APIs and workers."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import httpx
import psutil
import redis

from modelmill import processes
from modelmill.broker import model_queue
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ApiStore, Submission, keys
from tests.support.paths import TEST_MODELS
from tests.support.processes import wait_until
from tests.support.servers import Valkey, environment_of
from tests.support.workers import live_nodes

TASK = "zero-shot-image-classification"
DOT = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEA"
    "G7buVgAAAABJRU5ErkJggg=="
)
"""One pixel."""

TERMINAL = frozenset(status.value for status in Status if status.is_terminal)

PLACES = """
-- Checks where each job is, all at one moment. ARGV: ids. Returns the reason for each broken promise.
local wrong = {}
for _, id in ipairs(ARGV) do
  local job = redis.call('HMGET', K.job .. id, 'status', 'model', 'ends')
  local problem
  if not job[1] then
    problem = 'lost'
  else
    local ended = job[1] == 'complete' or job[1] == 'failed' or job[1] == 'canceled'
    local ready = redis.call('ZSCORE', K.ready .. job[2], id) and 1 or 0
    local leased = redis.call('ZSCORE', K.leases, id) and 1 or 0
    if ready + leased ~= (ended and 0 or 1) then
      problem = job[1] .. ' in ' .. ready .. ' queues and ' .. leased .. ' leases'
    elseif tonumber(job[3] or 0) ~= (ended and 1 or 0) then
      problem = job[1] .. ' with ' .. (job[3] or 'no') .. ' ends'
    end
  end
  if problem then table.insert(wrong, id .. ': ' .. problem) end
end
return wrong
"""


class Server(Valkey):
    """A Valkey that keeps what it has acknowledged through SIGKILL."""

    def __init__(self, folder: Path, *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._waits = True
        super().__init__(folder, "--appendonly", "yes", "--appendfsync", "always", *options)

    def launch(self) -> None:
        """Starts again, and does not wait until it answers."""
        self._waits = False
        self.start()
        self._waits = True

    def _answers(self) -> bool:
        return not self._waits or super()._answers()

    @property
    def broker_url(self) -> str:
        """Celery has a database of its own, so that a test can flush it."""
        return self.url.removesuffix("/0") + "/1"


class Api:
    """A `modelmill api` process. It keeps its port when it is started again."""

    def __init__(self, environment: dict[str, str], log: Path) -> None:
        self.port = processes.free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._environment = environment
        self._log = log
        self.launch()

    def launch(self) -> None:
        with self._log.open("ab") as log:
            command = processes.python("-m", "modelmill_cli", "api", "--port", str(self.port))
            self._process = processes.start(command, self._environment, log)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        processes.stop(self._process, 15)

    def is_ready(self) -> bool:
        with suppress(httpx.HTTPError):
            return httpx.get(f"{self.url}/health/ready", timeout=5).status_code == 200
        return False


class Worker:
    """A `modelmill worker`: a supervisor and its nodes, each a parent and a child."""

    def __init__(self, name: str, environment: dict[str, str], log: Path, devices: str) -> None:
        self.name = name
        self.log = log
        self._environment = environment
        self._devices = devices
        self.process: subprocess.Popen[bytes]
        self.launch()

    def launch(self) -> None:
        command = processes.python(
            *("-m", "modelmill_cli", "worker", "--devices", self._devices, "--name", self.name)
        )
        with self.log.open("ab") as log:
            self.process = processes.start(command, self._environment, log)

    def parents(self) -> list[int]:
        """The nodes' first processes; each leads a process group of its own."""
        try:
            found = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []
        return [process.pid for process in found if process.status() != psutil.STATUS_ZOMBIE]

    def children(self) -> list[int]:
        """The processes that run models."""
        found = []
        for parent in self.parents():
            with suppress(psutil.NoSuchProcess):
                found += [child.pid for child in psutil.Process(parent).children() if _is_pool_child(child)]
        return found

    def kill(self) -> None:
        """As if the host lost power: the supervisor and all of its nodes."""
        nodes = self.parents()
        self.process.kill()
        self.process.wait()
        for pid in nodes:
            kill_group(pid)

    def stop(self) -> None:
        nodes = self.parents()
        if not processes.stop(self.process, 25):
            for pid in nodes:
                kill_group(pid)


class System:
    """Job store, APIs and workers. Entering starts them, leaving stops those that still run."""

    def __init__(
        self,
        folder: Path,
        settings: dict[str, Any] | None = None,
        *,
        apis: int = 1,
        workers: Sequence[str] = ("cpu",),
        broker_of_apis: str | None = None,
        server_options: Sequence[str] = (),
    ) -> None:
        self._folder = folder
        self._changes = settings or {}
        self._apis = apis
        self._workers = workers
        self._broker_of_apis = broker_of_apis
        self._server_options = server_options
        self._cleanup = ExitStack()
        self.apis: list[Api] = []
        self.workers: list[Worker] = []

    def __enter__(self) -> System:
        with ExitStack() as cleanup:
            temporary = self._folder / "tmp"
            temporary.mkdir(parents=True)
            self.server = Server(self._folder / "valkey", *self._server_options)
            cleanup.callback(self.server.stop)
            self.settings = Settings(
                **{
                    "redis_url": self.server.url,
                    "broker_url": self.server.broker_url,
                    "models_file": TEST_MODELS,
                    "lease_s": 2.0,
                    "beat_s": 0.4,
                    "reap_s": 0.2,
                    "shutdown_grace_s": 20.0,
                }
                | self._changes
            )
            environment = environment_of(self.settings) | {"TMPDIR": str(temporary)}
            self.redis = redis.Redis.from_url(self.server.url)
            self.broker = redis.Redis.from_url(self.server.broker_url)
            cleanup.callback(self.redis.close)
            cleanup.callback(self.broker.close)
            for devices in self._workers:
                self.workers.append(self._worker(environment, devices))
                cleanup.callback(self.workers[-1].stop)
            more = {} if self._broker_of_apis is None else {"MODELMILL_BROKER_URL": self._broker_of_apis}
            for index in range(self._apis):
                self.apis.append(Api(environment | more, self._folder / f"api{index}.log"))
                cleanup.callback(self.apis[-1].stop)
            for api in self.apis:
                wait_until(api.is_ready, what="the API")
            for worker in self.workers:
                wait_until(lambda worker=worker: self.nodes_of(worker), what=f"{worker.name}'s nodes")  # type: ignore[misc]
            self.client = cleanup.enter_context(
                httpx.Client(base_url=self.apis[0].url if self.apis else "", timeout=30)
            )
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            # All at once: each takes some time to stop.
            worker.process.terminate()
        self._cleanup.close()

    def _worker(self, environment: dict[str, str], devices: str) -> Worker:
        name = f"w{len(self.workers)}"
        return Worker(name, environment, self._folder / f"{name}.log", devices)

    def nodes_of(self, worker: Worker) -> dict[str, dict[str, Any]]:
        """What a worker's nodes announce."""
        return live_nodes(self.redis, worker.name)

    def submit(self, model: str, *bodies: dict[str, Any], batched: bool = False) -> list[str]:
        """Submits jobs by HTTP. Returns their ids."""
        part = "/batched" if batched else ""
        ids = []
        for body in bodies:
            answer = self.client.post(f"/api/tasks/{TASK}{part}/{model}/jobs", json=body)
            assert answer.status_code == 202, answer.text
            ids.append(answer.json()["id"])
        return ids

    def submit_at_once(self, model: str, *bodies: dict[str, Any]) -> list[str]:
        """Submits jobs so that no worker can claim one before all are queued. Returns their ids.

        The first job wakes a worker that lingers, and the worker claims at once. So all jobs go to the server
        in one write.
        """
        requests = [json.dumps(each).encode() for each in bodies]
        jobs = [Submission(str(uuid.uuid4()), TASK, model, request) for request in requests]

        async def submit() -> None:
            store = ApiStore(self.settings)
            accepted = await asyncio.gather(*map(store.submit, jobs))
            await store.close()
            if any(each.bell for each in accepted):
                # This process sends no bell, so the reaper rings.
                self.redis.delete(keys.BELL_SENT + model)

        asyncio.run(submit())
        return [job.id for job in jobs]

    def documents(self, ids: Iterable[str]) -> list[dict[str, Any]]:
        return [self.client.get(f"/api/jobs/{job_id}").json() for job_id in ids]

    def wait_all(self, ids: Sequence[str], timeout_s: float = 60.0) -> list[dict[str, Any]]:
        """Waits until all jobs have ended, each exactly once. Returns their documents."""
        wait_until(lambda: not self.unfinished(ids), timeout_s, f"the end of {len(ids)} jobs")
        assert self.broken_promises(ids) == []
        return self.documents(ids)

    def unfinished(self, ids: Sequence[str]) -> list[str]:
        pipe = self.redis.pipeline(transaction=False)
        for job_id in ids:
            pipe.hget(keys.JOB + job_id, "status")
        return [
            job_id
            for job_id, status in zip(ids, pipe.execute(), strict=True)
            if (status or b"").decode() not in TERMINAL
        ]

    def broken_promises(self, ids: Sequence[str]) -> list[str]:
        """The jobs that are lost, ended twice, or neither waiting nor running, read at one moment."""
        found = cast("list[bytes]", self.redis.eval(keys.lua_table(PLACES) + PLACES, 0, *ids))
        return [line.decode() for line in found]

    def bells_waiting(self, model: str) -> int:
        return self.broker.llen(model_queue(model))

    def unended(self, ids: Iterable[str]) -> list[str]:
        """Those of the jobs that have not ended."""
        return [each["id"] for each in self.documents(ids) if each["status"] in ("starting", "running")]

    def leased(self) -> int:
        return self.redis.zcard(keys.LEASES)


def body(*classes: object) -> dict[str, Any]:
    """A request to the models ``echo`` and ``fragile``. Its result shows which request it belongs to."""
    return {"image": DOT, "classes": [str(name) for name in classes]}


def kill_group(pid: int) -> None:
    """SIGKILL to a node: its parent and its child."""
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)


def probabilities(document: dict[str, Any]) -> Any:
    result = document.get("result")
    return result["probabilities"] if isinstance(result, dict) else result


def _is_pool_child(process: psutil.Process) -> bool:
    try:
        line = process.cmdline()
    except (psutil.NoSuchProcess, psutil.ZombieProcess):
        return False
    return any("spawn_main" in part for part in line)
