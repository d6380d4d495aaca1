"""Many clients that wait on one API process: its memory, its connections, and when the last gets its answer.

``python -m benchmarks.waiters --clients 1000``: half of them follow a job by server-sent events, half ask
with ``Prefer: wait``, each for a job of its own that no worker runs yet. Then a worker starts. This is done
twice: memory that the second round adds would grow without limit.
"""

from __future__ import annotations

import asyncio
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, cast

import httpx
import psutil
import redis
import typer
import uvloop

from benchmarks.report import Section, Table, hardware, markdown
from benchmarks.system import MODELS, TASK, small_body
from modelmill import processes
from modelmill.embedded import EmbeddedServer

WAIT_S = 60
MODEL = "noop"
CONNECT_AT_ONCE = 50


@dataclass(frozen=True, slots=True)
class Moment:
    """The resources of the API process at one time."""

    name: str
    waiting: int
    memory_mib: float
    """Resident."""
    redis_connections: int
    """Connections of the API alone."""
    subscriptions: int
    open_files: int


@dataclass(frozen=True, slots=True)
class Parts:
    """One API process, its server, and how to start a worker."""

    port: int
    process: psutil.Process
    redis: redis.Redis
    environment: dict[str, str]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def waiting(self) -> int:
        lines = httpx.get(f"{self.url}/metrics").text.splitlines()
        return int(
            float(next(line for line in lines if line.startswith("modelmill_http_waiting ")).split()[1])
        )

    def moment(self, name: str) -> Moment:
        clients = self.redis.client_list()
        own = self.redis.client_id()
        mine = [client for client in clients if int(client["id"]) != own]
        return Moment(
            name,
            self.waiting(),
            self.process.memory_info().rss / 2**20,
            len(mine),
            sum(int(client["sub"]) > 0 for client in mine),
            self.process.num_fds(),
        )


@contextmanager
def one_api() -> Iterator[Parts]:
    """An API process on an empty server of its own, and no worker."""
    with ExitStack() as cleanup:
        folder = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="modelmill-bench-")))
        server = cleanup.enter_context(EmbeddedServer(folder))
        port = processes.free_port()
        environment = {"MODELMILL_REDIS_URL": server.url, "MODELMILL_MODELS_FILE": str(MODELS)}
        with (folder / "log").open("ab") as log:
            command = processes.python("-m", "modelmill_cli", "api", "--port", str(port))
            process = processes.start(command, environment, log)
        cleanup.callback(processes.stop, process, 20)
        parts = Parts(
            port, psutil.Process(process.pid), redis.Redis.from_url(server.url), environment, folder / "log"
        )
        _wait_until(lambda: _is_up(parts.url))
        yield parts


def _is_up(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health/live").is_success
    except httpx.TransportError:
        return False


def _wait_until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.05)


async def submit(port: int, count: int) -> list[str]:
    """Jobs that no worker runs yet."""
    limits = httpx.Limits(max_connections=16)
    async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", limits=limits, timeout=120) as client:

        async def one(_: int) -> str:
            response = await client.post(f"/api/tasks/{TASK}/{MODEL}/jobs", content=small_body())
            return cast("str", response.raise_for_status().json()["id"])

        return list(await asyncio.gather(*map(one, range(count))))


async def wait(port: int, job_id: str, streams: bool, opening: asyncio.Semaphore) -> float:
    """One client on a plain socket, so that a thousand cost little. Returns when it got its answer."""
    path = f"/api/jobs/{job_id}/events" if streams else f"/api/jobs/{job_id}"
    prefer = "" if streams else f"Prefer: wait={WAIT_S}\r\n"
    async with opening:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{prefer}\r\n".encode())
        await writer.drain()
    answer = await reader.read(-1)
    told_at = time.monotonic()
    writer.close()
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b" 200 " in head.split(b"\r\n", 1)[0], head
    if streams:
        assert body.count(b"event: started") == body.count(b"event: ended") == 1, body
    assert b'"status":"complete"' in body, body
    return told_at


@dataclass(frozen=True, slots=True)
class Round:
    """All clients once."""

    before: Moment
    all_wait: Moment
    after: Moment
    connecting_s: float
    told_s: Sequence[float]
    """From the first end to each client's answer."""


async def measure(parts: Parts, clients: int) -> Round:
    ids = await submit(parts.port, clients)
    before = await asyncio.to_thread(parts.moment, "before")
    opening = asyncio.Semaphore(CONNECT_AT_ONCE)
    started = time.monotonic()
    calls = [
        asyncio.create_task(wait(parts.port, job_id, index % 2 == 0, opening))
        for index, job_id in enumerate(ids)
    ]
    while await asyncio.to_thread(parts.waiting) < clients:
        await asyncio.sleep(0.05)
    connecting_s = time.monotonic() - started
    await asyncio.sleep(2)
    all_wait = await asyncio.to_thread(parts.moment, "all wait")
    with parts.log.open("ab") as log:
        options = ("--devices", "cpu", "--models", MODEL, "--preload", MODEL)
        command = processes.python("-m", "modelmill_cli", "worker", *options)
        worker = processes.start(command, parts.environment, log)
    try:
        told_at = sorted(await asyncio.gather(*calls))
    finally:
        await asyncio.to_thread(processes.stop, worker, 30)
    await asyncio.sleep(1)
    after = await asyncio.to_thread(parts.moment, "after")
    return Round(before, all_wait, after, connecting_s, [at - told_at[0] for at in told_at])


def section(clients: int, rounds: Sequence[Round]) -> Section:
    columns = (
        "round",
        "when",
        "waiting",
        "API memory, MiB",
        "Redis connections",
        "subscriptions",
        "open files",
    )
    rows = [
        (number, m.name, m.waiting, m.memory_mib, m.redis_connections, m.subscriptions, m.open_files)
        for number, each in enumerate(rounds, 1)
        for m in (each.before, each.all_wait, each.after)
    ]
    each_kib = (rounds[0].all_wait.memory_mib - rounds[0].before.memory_mib) * 1024 / clients
    notes = [
        f"{clients} clients, half of them server-sent events, half `Prefer: wait`; {each_kib:.0f} KiB each.",
        *(
            f"Round {number}: all connected within {each.connecting_s:.1f} s; all {len(each.told_s)} were "
            f"told of their end, the last {each.told_s[-1]:.2f} s after the first."
            for number, each in enumerate(rounds, 1)
        ),
    ]
    return Section("Many who wait", [Table("one API process", columns, rows)], [], notes)


def main(
    clients: Annotated[int, typer.Option(help="How many wait at once.")] = 1000,
    rounds: Annotated[int, typer.Option(help="How often, on the same API process.")] = 2,
) -> None:
    """Measure what many clients that wait at once cost one API process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < clients + 200:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, clients + 200), hard))
    print(hardware())
    with one_api() as parts:
        measured = [uvloop.run(measure(parts, clients)) for _ in range(rounds)]
    print(markdown([section(clients, measured)]))


if __name__ == "__main__":
    typer.run(main)
