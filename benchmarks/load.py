"""The load client: one for all systems, light enough not to limit what is measured.

It speaks HTTP/1.1 over a few kept-open connections; requests are written before the clock starts, and
httptools parses the answers. Each of its workers has one job in flight: it submits, and then pauses and
polls in turn until the job has ended. If a system answers a submit with the result itself, it is not
polled.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import httptools
import uvloop

POLL_PAUSE_S = 0.005
"""The same for every system that is compared."""
JOB_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Target:
    """How one system is asked, and how its answers are read."""

    name: str
    port: int
    submit_path: str
    body: bytes
    """The JSON of one job."""
    poll_path: Callable[[Any], str] | None = None
    """From the answer to a submit: where the job is read. None: that answer is the result already."""
    ended: Callable[[Any], bool] = lambda _: True
    """Whether a poll's answer says that the job has ended. Raises if it failed, or its result is wrong."""
    result_path: Callable[[Any], str] | None = None
    """From the answer to a submit: where the result is, if it is not in the poll's answer."""
    check: Callable[[Any], object] = lambda _: None
    """Raises if the answer at ``result_path`` is no result."""
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = POLL_PAUSE_S
    """Before each poll of a job."""


@dataclass(frozen=True, slots=True)
class Run:
    """The measurements of one run of the load client."""

    seconds: float
    """From the first submit to the last end."""
    latencies_s: Sequence[float]
    """For each job, the time from its submit to the answer that said it had ended. After a burst they say
    little, because polling begins only when all jobs are submitted."""
    requests: int

    @property
    def jobs_per_s(self) -> float:
        return len(self.latencies_s) / self.seconds

    @property
    def p50_s(self) -> float:
        return statistics.median(self.latencies_s)

    @property
    def p99_s(self) -> float:
        return statistics.quantiles(self.latencies_s, n=100)[98]


def closed_loop(target: Target, jobs: int, connections: int) -> Run:
    """``connections`` workers, each with one job in flight, until ``jobs`` have ended."""
    return uvloop.run(_closed_loop(target, jobs, connections))


def burst(target: Target, jobs: int, connections: int = 32) -> Run:
    """All ``jobs`` submitted as fast as they are taken, and then all of them polled until they have ended."""
    return uvloop.run(_burst(target, jobs, connections))


class _Connection(asyncio.Protocol):
    """One kept-open connection, one request at a time."""

    def __init__(self) -> None:
        self._parser = httptools.HttpResponseParser(self)
        self._body = bytearray()
        self._answer: asyncio.Future[tuple[int, bytes]] | None = None
        self._transport: asyncio.Transport | None = None
        self.requests = 0

    async def ask(self, request: bytes) -> Any:
        """The JSON of the answer.

        Raises:
            RuntimeError: the answer is no 2xx.
        """
        assert self._transport is not None
        if self._transport.is_closing():
            raise ConnectionResetError("the server closed the connection")
        self.requests += 1
        self._answer = asyncio.get_running_loop().create_future()
        self._transport.write(request)
        async with asyncio.timeout(JOB_TIMEOUT_S):
            status, body = await self._answer
        if not 200 <= status < 300:
            raise RuntimeError(f"{status}: {body[:500]!r}")
        return json.loads(body)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are asyncio's by behaviour and not by class.
        self._transport = cast("asyncio.Transport", transport)

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(exc or ConnectionResetError("the server closed the connection"))

    # Called by the parser.
    def on_message_begin(self) -> None:
        self._body.clear()

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_result((self._parser.get_status_code(), bytes(self._body)))


class _Client:
    """The requests to one system, over one connection."""

    def __init__(self, target: Target, connection: _Connection) -> None:
        self._target = target
        self._connection = connection
        headers = {"Host": f"127.0.0.1:{target.port}", "Accept": "application/json"}
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        extra = {**target.headers, "Content-Type": "application/json", "Content-Length": len(target.body)}
        lines = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
        head = f"POST {target.submit_path} HTTP/1.1\r\n{self._headers}{lines}\r\n"
        self._submit = head.encode() + target.body

    async def submit(self) -> Any:
        return await self._connection.ask(self._submit)

    async def follow(self, accepted: Any, *, at_once: bool = False) -> None:
        """Polls until the job has ended, first after a pause or at once, and fetches its result."""
        target = self._target
        if target.poll_path is None:
            target.ended(accepted)
            return
        path = target.poll_path(accepted)
        deadline = time.monotonic() + JOB_TIMEOUT_S
        if not at_once:
            await asyncio.sleep(target.pause_s)
        while not target.ended(await self._get(path)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"{target.name}: {path} has not ended after {JOB_TIMEOUT_S:g} s")
            await asyncio.sleep(target.pause_s)
        if target.result_path is not None:
            target.check(await self._get(target.result_path(accepted)))

    async def _get(self, path: str) -> Any:
        return await self._connection.ask(f"GET {path} HTTP/1.1\r\n{self._headers}\r\n".encode())


async def _connect(target: Target, connections: int) -> list[_Connection]:
    loop = asyncio.get_running_loop()
    made = [loop.create_connection(_Connection, "127.0.0.1", target.port) for _ in range(connections)]
    return [connection for _, connection in await asyncio.gather(*made)]


async def _closed_loop(target: Target, jobs: int, connections: int) -> Run:
    latencies: list[float] = []
    places = iter(range(jobs))  # shared: a worker that is free takes the next one

    async def work(client: _Client) -> None:
        for _ in places:
            started = time.perf_counter()
            await client.follow(await client.submit())
            latencies.append(time.perf_counter() - started)

    return await _timed(target, connections, latencies, lambda clients: [work(client) for client in clients])


async def _burst(target: Target, jobs: int, connections: int) -> Run:
    latencies: list[float] = []
    places = iter(range(jobs))
    submitted: deque[tuple[float, Any]] = deque()
    all_in = asyncio.Barrier(connections)

    async def work(client: _Client) -> None:
        for _ in places:
            started = time.perf_counter()
            submitted.append((started, await client.submit()))
        await all_in.wait()
        while submitted:
            started, accepted = submitted.popleft()
            await client.follow(accepted, at_once=True)
            latencies.append(time.perf_counter() - started)

    return await _timed(target, connections, latencies, lambda clients: [work(client) for client in clients])


async def _timed(
    target: Target, connections: int, latencies: list[float], work: Callable[[list[_Client]], Sequence[Any]]
) -> Run:
    # A pause of this process must not count as one of the system.
    gc.collect()
    gc.freeze()
    opened = await _connect(target, connections)
    clients = [_Client(target, connection) for connection in opened]
    started = time.perf_counter()
    try:
        await asyncio.gather(*work(clients))
    finally:
        for connection in opened:
            connection.close()
    seconds = time.perf_counter() - started
    return Run(seconds, latencies, sum(connection.requests for connection in opened))
