"""The soak: submits jobs without pause, and kills every kind of process at random times.

The schedule comes from one seed. The timing of the machine does not, so a seed repeats the attacks and not
every outcome.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import httpx
import redis

from modelmill.broker import model_queue
from modelmill.states import Lane
from modelmill.store import keys
from tests.chaos.harness import DOT, PLACES, TASK, TERMINAL, System, Worker, kill_group, signal_all
from tests.support.blobs import unwritable

DRAIN_WITHIN_S = 15.0
SUBMITTERS = 12
MODELS = ("echo", "noop", "echo-slow", "sized")
LIMITS = {"blob_min_bytes": 100_000, "max_result_bytes": 200_000}
"""The settings that go with the numbers below."""
IN_REDIS, IN_BLOB, TOO_LARGE = 20_000, 30_000, 60_000
"""Numbers in a result, 4 bytes each: a key of its own in Redis, a blob, or more than the setting allows."""
NODE_KILLS_A_WORKER = 3
"""The supervisor waits longer each time before it starts a node again. If it is killed itself, this starts
anew."""


@dataclass(frozen=True)
class Pace:
    """Mean seconds between attacks of each kind, and jobs a second."""

    worker_kill_s: float = 4.2
    api_kill_s: float = 17.0
    redis_kill_s: float = 18.0
    broker_flush_s: float = 14.0
    bell_theft_s: float = 0.5
    full_redis_s: float = 15.0
    full_blobs_s: float = 15.0
    jobs_per_s: float = 150.0


@dataclass(frozen=True)
class Sent:
    """A job that the driver sent, and the result that must come back."""

    path: str
    body: dict[str, Any]
    expected: Any
    code: str | None = None
    """The error that must come instead."""


@dataclass
class Report:
    """The counts of one run."""

    seed: int
    seconds: float
    accepted: int = 0
    attacks: Counter[str] = field(default_factory=Counter)
    samples: int = 0
    lost: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    ended_twice: list[str] = field(default_factory=list)
    accepted_twice: int = 0
    wrongly_failed: list[str] = field(default_factory=list)
    wrong_results: list[str] = field(default_factory=list)
    redelivered: int = 0
    too_large: int = 0
    retries: int = 0
    drain_s: float = float("inf")

    def table(self) -> str:
        kills = self.attacks
        rows = [
            ("seed, seconds of chaos", f"{self.seed}, {self.seconds:.0f}"),
            ("jobs accepted", self.accepted),
            ("requests sent again by the client", self.retries),
            ("worker kills", self.worker_kills),
            ("  of children", kills["child"]),
            ("  of nodes (parent and child)", kills["node"]),
            ("  of supervisors with all nodes", kills["host"]),
            ("API kills", kills["api"]),
            ("Redis kills (appendfsync always)", kills["redis"]),
            ("broker flushes", kills["flush"]),
            ("bells stolen", kills["bells"]),
            ("Redis at maxmemory", kills["full redis"]),
            ("blob folder full", kills["full blobs"]),
            ("jobs that failed because their result is too large, as they must", self.too_large),
            ("jobs handed out more than once", self.redelivered),
            ("atomic samples of all open jobs", self.samples),
            ("lost", len(self.lost)),
            ("neither waiting nor running, or both", len(self.misplaced)),
            ("two terminal writes", len(self.ended_twice)),
            ("accepted twice under one key", self.accepted_twice),
            ("wrongly failed", len(self.wrongly_failed)),
            ("wrong results", len(self.wrong_results)),
            ("time to drain", f"{self.drain_s:.1f} s"),
        ]
        return "\n".join(["| | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)])

    @property
    def worker_kills(self) -> int:
        return sum(self.attacks[kind] for kind in ("child", "node", "host"))


class Soak:
    """One run on a running system: attacks for ``seconds``, then waits for the end of all jobs."""

    def __init__(self, system: System, seed: int, seconds: float, pace: Pace) -> None:
        self._system = system
        self._pace = pace
        self._seconds = seconds
        self._random = random.Random(seed)
        self._over = asyncio.Event()
        self._blobs = Path(system.settings.blob_url or "")
        self._sent: dict[str, Sent] = {}
        """Accepted jobs, by id."""
        self._open: set[str] = set()
        """The accepted jobs that have not been seen to end."""
        self._node_kills: Counter[str] = Counter()
        # No retries: the probe must not block the event loop while Redis is down.
        self._probe = redis.Redis.from_url(system.server.url, retry=None, socket_timeout=10)
        self._broker = redis.Redis.from_url(system.server.broker_url, retry=None, socket_timeout=10)
        self.report = Report(seed, seconds)

    async def run(self) -> Report:
        limits = httpx.Limits(max_connections=SUBMITTERS * 2)
        async with httpx.AsyncClient(timeout=10, limits=limits) as client:
            drivers = [asyncio.create_task(self._submit_jobs(client, index)) for index in range(SUBMITTERS)]
            attacks = [
                asyncio.create_task(self._attack(mean_s, act))
                for mean_s, act in (
                    (self._pace.worker_kill_s, self._kill_worker),
                    (self._pace.api_kill_s, self._kill_api),
                    (self._pace.redis_kill_s, self._kill_redis),
                    (self._pace.broker_flush_s, self._flush_broker),
                    (self._pace.bell_theft_s, self._steal_bells),
                    (self._pace.full_redis_s, self._fill_redis),
                    (self._pace.full_blobs_s, self._fill_blobs),
                )
            ]
            sampler = asyncio.create_task(self._sample())
            await asyncio.sleep(self._seconds)
            self._over.set()
            await asyncio.gather(*attacks)
            await self._kill_all()
            ended_at = time.monotonic()
            await asyncio.gather(*drivers)
            await self._drain(ended_at)
            await sampler
        self._judge()
        self._probe.close()
        self._broker.close()
        return self.report

    async def _pause(self, seconds: float) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._over.wait(), seconds)

    async def _submit_jobs(self, client: httpx.AsyncClient, index: int) -> None:
        jobs = random.Random(self._random.random())
        next_at = time.monotonic() + index / self._pace.jobs_per_s
        count = 0
        while not self._over.is_set():
            await self._pause(max(0.0, next_at - time.monotonic()))
            # After an outage, the driver does not catch up.
            next_at = max(next_at, time.monotonic() - 1) + SUBMITTERS / self._pace.jobs_per_s
            count += 1
            await self._submit(client, make_job(jobs, index, count), jobs)

    async def _submit(self, client: httpx.AsyncClient, job: Sent, choice: random.Random) -> None:
        """Sends a job with one Idempotency-Key until it is accepted. From then on it must end."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        while True:
            api = choice.choice(self._system.apis)
            with suppress(httpx.TransportError):
                answer = await client.post(api.url + job.path, json=job.body, headers=key)
                if answer.status_code == 202:
                    job_id = answer.json()["id"]
                    self._sent[job_id] = job
                    self._open.add(job_id)
                    return
                assert answer.status_code >= 500, f"{answer.status_code}: {answer.text}"
            self.report.retries += 1
            await asyncio.sleep(choice.uniform(0.05, 0.3))

    async def _attack(self, mean_s: float, act: Callable[[], Awaitable[None]]) -> None:
        await self._pause(self._random.uniform(0, mean_s))
        while not self._over.is_set():
            await act()
            await self._pause(self._random.uniform(0.5, 1.5) * mean_s)

    async def _kill_worker(self) -> None:
        worker = self._random.choice(self._system.workers)
        kind = self._random.choices(("child", "node", "host"), (65, 20, 15))[0]
        if kind == "node" and self._node_kills[worker.name] >= NODE_KILLS_A_WORKER:
            kind = "host"
        while not self._over.is_set():
            if targets := worker.parents() if kind == "node" else worker.children():
                self._kill(worker, kind, targets)
                return
            # It is starting.
            await self._pause(0.1)

    def _kill(self, worker: Worker, kind: str, targets: list[int]) -> None:
        if kind == "child":
            signal_all(targets[:1], signal.SIGKILL)
        elif kind == "node":
            kill_group(targets[0])
            self._node_kills[worker.name] += 1
        else:
            worker.kill()
            worker.launch()
            self._node_kills[worker.name] = 0
        self.report.attacks[kind] += 1

    async def _kill_api(self) -> None:
        api = self._random.choice(self._system.apis)
        api.kill()
        api.launch()
        self.report.attacks["api"] += 1

    async def _kill_redis(self) -> None:
        self._system.server.stop()
        self.report.attacks["redis"] += 1
        # Redis must start again, even if the chaos is over.
        await asyncio.sleep(self._random.uniform(0, 1))
        self._system.server.launch()
        while not self._ask(self._probe.ping):  # noqa: ASYNC110 - another process sets no event here
            await asyncio.sleep(0.05)

    async def _flush_broker(self) -> None:
        if self._ask(self._broker.flushdb):
            self.report.attacks["flush"] += 1

    async def _steal_bells(self) -> None:
        def steal() -> int:
            pipe = self._broker.pipeline()
            for model in MODELS:
                pipe.llen(model_queue(model))
                pipe.delete(model_queue(model))
            return sum(cast("list[int]", pipe.execute())[::2])

        self.report.attacks["bells"] += self._ask(steal) or 0

    async def _fill_redis(self) -> None:
        """Redis refuses large values for a while. If it is killed meanwhile, it starts with room."""
        if self._ask(lambda: self._probe.config_set("maxmemory", 1)):
            self.report.attacks["full redis"] += 1
        await asyncio.sleep(self._random.uniform(0.3, 2))
        while not self._ask(lambda: self._probe.config_set("maxmemory", 0)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)

    async def _fill_blobs(self) -> None:
        """The blob folder refuses new blobs for a while."""
        self.report.attacks["full blobs"] += 1
        with unwritable(self._blobs):
            await asyncio.sleep(self._random.uniform(0.3, 2))

    async def _kill_all(self) -> None:
        """The last attack: kills every process at once, while jobs are in progress."""
        for worker in self._system.workers:
            worker.kill()
            worker.launch()
            self.report.attacks["host"] += 1
        for api in self._system.apis:
            api.kill()
            api.launch()
            self.report.attacks["api"] += 1
        await self._flush_broker()
        await self._kill_redis()

    def _ask(self, question: Callable[[], Any]) -> Any:
        """The server's answer, or None while it does not answer."""
        try:
            return question()
        except redis.RedisError:
            return None

    async def _sample(self) -> None:
        """Checks all open jobs at one moment, about once a second, until the chaos is over."""
        while not self._over.is_set():
            await self._pause(1.0)
            self._look()

    def _look(self) -> None:
        ids = list(self._open)
        if ids and (found := self._ask(lambda: self._look_at(ids))) is not None:
            broken, ended = found
            self.report.samples += 1
            for line in broken:
                where = self.report.lost if line.endswith(": lost") else self.report.misplaced
                if line not in where:
                    where.append(line)
            self._open -= ended

    def _look_at(self, ids: list[str]) -> tuple[list[str], set[str]]:
        broken = cast("list[bytes]", self._probe.eval(keys.lua_table(PLACES) + PLACES, 0, *ids))
        pipe = self._probe.pipeline(transaction=False)
        for job_id in ids:
            pipe.hget(keys.JOB + job_id, "status")
        ended = {
            job_id
            for job_id, status in zip(ids, pipe.execute(), strict=True)
            if (status or b"").decode() in TERMINAL
        }
        return [line.decode() for line in broken], ended

    async def _drain(self, since: float) -> None:
        """Waits for the end of all jobs.

        It waits longer than allowed, so that the table shows by how much.
        """
        while time.monotonic() - since < DRAIN_WITHIN_S * 3:
            self._look()
            if not self._open:
                self.report.drain_s = time.monotonic() - since
                return
            await asyncio.sleep(0.05)

    def _judge(self) -> None:
        """Judges each job by its record."""
        report = self.report
        report.accepted = len(self._sent)
        known = {key.decode().removeprefix(keys.JOB) for key in self._probe.scan_iter(f"{keys.JOB}*", 5000)}
        report.accepted_twice = len(known - self._sent.keys())
        ids = list(self._sent)
        for start in range(0, len(ids), 1000):
            chunk = ids[start : start + 1000]
            pipe = self._probe.pipeline(transaction=False)
            for job_id in chunk:
                pipe.hgetall(keys.JOB + job_id)
            for job_id, record in zip(chunk, pipe.execute(), strict=True):
                self._judge_one(job_id, {name.decode(): value.decode() for name, value in record.items()})

    def _judge_one(self, job_id: str, record: dict[str, str]) -> None:
        report = self.report
        if record.get("status") not in TERMINAL:
            line = f"{job_id}: {record.get('status', 'lost')}"
            if not any(known.startswith(job_id) for known in report.lost):
                report.lost.append(line)
            return
        if record["ends"] != "1":
            report.ended_twice.append(f"{job_id}: {record['ends']} ends")
        report.redelivered += int(record["deliveries"]) > 1
        sent = self._sent[job_id]
        if sent.code is not None and json.loads(record.get("error", "{}")).get("code") == sent.code:
            report.too_large += 1
        elif record["status"] != "complete":
            report.wrongly_failed.append(f"{job_id}: {record['status']} {record.get('error', '')}")
        elif sent.code is not None or json.loads(result := self._result(record)) != sent.expected:
            report.wrong_results.append(f"{job_id}: {result[:200]}")

    def _result(self, record: dict[str, str]) -> str:
        if "out_blob" in record:
            return (self._blobs / record["out_blob"]).read_text()
        if "out" in record:
            return (cast("bytes | None", self._probe.get(record["out"])) or b"null").decode()
        return record["result"]


def make_job(choice: random.Random, index: int, count: int) -> Sent:
    """A good job whose result differs from the result of every other job."""
    lane = choice.choice([lane.value for lane in Lane])
    mark = index + count / 1_000_000
    if choice.random() < 0.25:
        classes = [f"{n}" for n in range(choice.randint(2, 6))]
        expected = {"probabilities": [1 / len(classes)] * len(classes)}
        return Sent(path("noop"), {"image": DOT, "classes": classes, "lane": lane}, expected)
    if choice.random() < 0.06:
        number = choice.choice((IN_REDIS, IN_BLOB, TOO_LARGE)) + count % 1000
        code = "result_too_large" if number >= TOO_LARGE else None
        sized = {"image": DOT, "classes": [str(number)], "lane": lane}
        return Sent(path("sized"), sized, {"probabilities": [0.5] * number}, code)
    model = "echo-slow" if choice.random() < 0.5 else "echo"
    if choice.random() < 0.1:
        rows = [[mark, n / 10] for n in range(choice.randint(1, 24))]
        body = {"image": [DOT] * len(rows), "classes": [list(map(str, row)) for row in rows], "lane": lane}
        return Sent(path(model, batched=True), body, [{"probabilities": row} for row in rows])
    row = [mark, choice.random()]
    body = {"image": DOT, "classes": list(map(str, row)), "lane": lane}
    return Sent(path(model), body, {"probabilities": row})


def path(model: str, *, batched: bool = False) -> str:
    return f"/api/tasks/{TASK}{'/batched' if batched else ''}/{model}/jobs"
