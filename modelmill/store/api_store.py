"""The asyncio job store, for the API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from modelmill.blobs import BlobStore
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import keys, scripts
from modelmill.store.ends import log_ends
from modelmill.store.multiplex import Command, Multiplexer
from modelmill.store.records import (
    LANE_RANK,
    JobRecord,
    NodeRecord,
    Reaped,
    Submission,
    SubmitReply,
    node_records,
)

SHARED_BYTES = 1024 * 1024
"""Larger bodies do not go over the connection that everybody shares."""
OPEN_LOOK = 2000
"""Waiting jobs that are looked at to find a caller's."""


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a job that has not ended stands, and what an estimate of its end is made from."""

    position: int | None
    """Jobs before it in its model's queue; None when it is not in the queue."""
    jobs_per_s: float | None
    """What one worker did of late."""
    items_done: int
    """Finished items of a batched job."""
    now: float
    """Seconds since the epoch, by the clock of Redis."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """A model's queue: how many wait, in all lanes, and how long the one has that came first."""

    depth: int
    oldest_s: float


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The whole system at a glance, for metrics."""

    ended: Mapping[tuple[str, str, str], int]
    """Jobs that ended, ever, by task, model and status."""
    queues: Mapping[str, QueueState]
    """By model; of every model that lately had jobs, or has a worker."""
    nodes: Sequence[NodeRecord]


class ApiStore:
    """Submits, reads, cancels and reaps. Every method raises ``ModelmillError`` for a store in trouble."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.blobs = BlobStore.from_settings(settings)
        retry = redis.asyncio.retry.Retry(ExponentialBackoff(cap=0.2, base=0.02), retries=2)
        # A pool that lets callers wait for a connection: the plain one refuses whoever comes 101st.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.redis_url,
            max_connections=64,
            protocol=3,
            timeout=10,
            socket_timeout=5,
            socket_connect_timeout=2,
            health_check_interval=30,
            retry=retry,
        )
        self._redis = redis.asyncio.Redis.from_pool(pool)
        # What every job costs goes through here; the rest, and very large bodies, through the pool.
        plain = redis.asyncio.ConnectionPool.from_url(
            settings.redis_url,
            protocol=3,
            socket_timeout=None,
            socket_connect_timeout=2,
            socket_keepalive=True,
        )
        self._shared = Multiplexer(plain, retry, answer_s=5.0)

    async def close(self) -> None:
        await self._shared.close()
        await self._redis.aclose()

    async def ping(self) -> None:
        async with _translated():
            await cast("Any", self._redis.ping())

    async def submit(self, job: Submission) -> SubmitReply:
        """Accepts a job: its payload and the script that takes it, in one round trip.

        A reply that was lost is a 503 to the caller, although the job may have been accepted; the
        same Idempotency-Key then gives the same answer.
        """
        job = await self._placed(job)
        commands = self._submit_commands(job)
        async with _translated():
            if job.blob is not None or len(job.body) <= SHARED_BYTES:
                replies = await self._shared.execute(*commands)
            else:
                # Nobody else's commands are to wait behind many megabytes.
                pipe = self._redis.pipeline(transaction=False)
                for command in commands:
                    pipe.execute_command(*command)
                replies = await pipe.execute(raise_on_error=False)
            return await self._read_submit(job, replies)

    async def is_known(self, caller: str, idempotency_key: str) -> bool:
        """Whether a job of that key is there, so that ``submit`` accepts no other."""
        (known,) = await self.ask(("GET", f"{keys.IDEMPOTENCY}{caller}:{idempotency_key}"))
        if known is None:
            return False
        job_id = known.decode().partition(" ")[0]
        ((task, gone),) = await self.ask(("HMGET", keys.JOB + job_id, "task", "gone"))
        return task is not None and gone is None

    async def submit_many(self, jobs: Sequence[Submission]) -> list[SubmitReply | ModelmillError]:
        """Accepts jobs in their order; all in one round trip, unless their bodies are large."""
        if sum(len(job.body) for job in jobs) > SHARED_BYTES or any(map(self._is_for_blobs, jobs)):
            return [await self._submit_or_say(job) for job in jobs]
        packed = [self._submit_commands(job) for job in jobs]
        answers: list[SubmitReply | ModelmillError] = []
        try:
            async with _translated():
                replies = await self._shared.execute(*chain.from_iterable(packed))
        except ModelmillError as error:
            return [error] * len(jobs)
        at = 0
        for job, commands in zip(jobs, packed, strict=True):
            try:
                async with _translated():
                    answers.append(await self._read_submit(job, replies[at : at + len(commands)]))
            except ModelmillError as error:
                answers.append(error)
            at += len(commands)
        return answers

    async def _submit_or_say(self, job: Submission) -> SubmitReply | ModelmillError:
        try:
            return await self.submit(job)
        except ModelmillError as error:
            return error

    def _is_for_blobs(self, job: Submission) -> bool:
        return self.blobs is not None and job.blob is None and len(job.body) >= self._settings.blob_min_bytes

    async def _placed(self, job: Submission) -> Submission:
        """The job, with a large body written to the blob store."""
        if self.blobs is None or not self._is_for_blobs(job):
            return job
        name = keys.IN_BLOB + job.id
        await asyncio.to_thread(self.blobs.put, name, job.body)
        return replace(job, blob=name)

    def _submit_commands(self, job: Submission) -> list[Command]:
        arguments = scripts.pack_submit(job, self._settings)
        accept: Command = ("EVALSHA", scripts.script("submit").sha, 0, *arguments)
        if job.blob is not None:
            return [accept]
        # Not over itself: sent again after a lost reply, it would give an accepted job's a time to live.
        return [("SET", keys.IN + job.id, job.body, "EX", scripts.ORPHAN_TTL_S, "NX"), accept]

    async def _read_submit(self, job: Submission, replies: Sequence[Any]) -> SubmitReply:
        *written, reply = replies
        for refused in written:
            if isinstance(refused, Exception):
                raise refused
        if isinstance(reply, NoScriptError):
            arguments = cast("list[str]", scripts.pack_submit(job, self._settings))
            reply = await cast("Any", self._redis.eval(scripts.script("submit").source, 0, *arguments))
        if isinstance(reply, Exception):
            raise reply
        return scripts.read_submit(reply)

    async def get(self, job_id: str) -> JobRecord | None:
        """The job, or None when it is unknown or its time to live is over."""
        async with _translated():
            (fields,) = await self._ask(("HGETALL", keys.JOB + job_id))
            if b"task" not in fields or b"gone" in fields:
                return None
            result = fields.get(b"result")
            if b"out" in fields:
                result = cast("bytes | None", await self._redis.get(fields[b"out"].decode()))
            if b"out_blob" in fields:
                result = await self._read_blob(fields[b"out_blob"].decode())
            return JobRecord.from_hash(job_id, fields, result)

    async def _read_blob(self, name: str) -> bytes | None:
        return None if self.blobs is None else await asyncio.to_thread(self.blobs.get, name)

    async def request(self, job: JobRecord) -> bytes | None:
        """The body that a job was submitted with, if it is still there."""
        if job.blob is not None:
            return await self._read_blob(job.blob)
        async with _translated():
            return cast("bytes | None", await self._redis.get(keys.IN + job.id))

    async def standing(self, job: JobRecord) -> Standing:
        """Where a job stands that had not ended when it was read."""
        async with _translated():
            position, rate, done, (seconds, micros) = await self._ask(
                ("ZRANK", keys.READY + job.model, job.id),
                ("HGET", keys.RATES, job.model),
                ("HLEN", keys.PARTS + job.id),
                ("TIME",),
            )
        return Standing(position, float(rate) if rate else None, done, int(seconds) + int(micros) / 1e6)

    async def ended(self, job_ids: Sequence[str]) -> list[str]:
        """Those of ``job_ids`` that have ended, or are not there any more."""
        found: list[bytes | None] = []
        async with _translated():
            for start in range(0, len(job_ids), 1000):
                pipe = self._redis.pipeline(transaction=False)
                for job_id in job_ids[start : start + 1000]:
                    pipe.hget(keys.JOB + job_id, "status")
                found += await pipe.execute()
        return [
            job_id
            for job_id, status in zip(job_ids, found, strict=True)
            if status is None or Status(status.decode()).is_terminal
        ]

    async def cancel(self, job_id: str) -> str:
        """Cancels a job: ``canceled``, ``requested``, ``missing``, or the status it has ended with."""
        reply = await self._run_and_log("cancel", [job_id, self._settings.result_ttl_s * 1000])
        return cast("bytes", reply).decode()

    async def delete(self, job_ids: Sequence[str]) -> list[str]:
        """Removes jobs, canceling those that run or wait: ``deleted``, ``deleting`` or ``missing`` each."""
        reply = await self._run_and_log("delete", [self._settings.result_ttl_s * 1000, *job_ids])
        return [verdict.decode() for verdict in reply]

    async def reap(self) -> Reaped:
        """Returns expired leases and overdue jobs, and wins the right to ring for waiting models."""
        return scripts.read_reap(await self._run_and_log("reap", scripts.pack_reap(self._settings)))

    async def nodes(self) -> list[NodeRecord]:
        """The worker nodes that live."""
        async with _translated():
            names = sorted(name.decode() for name in await cast("Any", self._redis.smembers(keys.NODES)))
            pipe = self._redis.pipeline(transaction=False)
            for name in names:
                pipe.hgetall(keys.NODE + name)
            found = await pipe.execute() if names else []
            gone = [name for name, fields in zip(names, found, strict=True) if not fields]
            if gone:
                await cast("Any", self._redis.srem(keys.NODES, *gone))
        return node_records(names, found)

    async def snapshot(self) -> Snapshot:
        """What metrics are made from."""
        nodes = await self.nodes()
        async with _translated():
            pipe = self._redis.pipeline(transaction=False)
            pipe.hgetall(keys.COUNTERS)
            pipe.smembers(keys.MODELS)
            pipe.time()
            counters, waiting, (seconds, micros) = await pipe.execute()
            ended = {_counter(name): int(count) for name, count in counters.items()}
            models = {name.decode() for name in waiting} | {model for _, model, _ in ended}
            models.update(model for node in nodes for model in node.models)
            queues = await self._queues(sorted(models), seconds * 1000 + micros // 1000)
        return Snapshot(ended, queues, nodes)

    async def _queues(self, models: Sequence[str], now_ms: int) -> dict[str, QueueState]:
        pipe = self._redis.pipeline(transaction=False)
        for model in models:
            pipe.zcard(keys.READY + model)
            # The head of each lane: within one, jobs lie in the order in which they came.
            for rank in LANE_RANK.values():
                first, end = f"{rank * keys.LANE_SPAN}", f"({(rank + 1) * keys.LANE_SPAN}"
                pipe.zrange(keys.READY + model, first, end, byscore=True, offset=0, num=1)
        replies = iter(await pipe.execute() if models else [])
        depths: dict[str, int] = {}
        heads: list[tuple[str, str]] = []
        for model in models:
            depths[model] = next(replies)
            heads += [(model, job_id.decode()) for _ in LANE_RANK for job_id in next(replies)]
        pipe = self._redis.pipeline(transaction=False)
        for _, job_id in heads:
            pipe.hget(keys.JOB + job_id, "created_ms")
        oldest_s = dict.fromkeys(models, 0.0)
        for (model, _), since in zip(heads, await pipe.execute() if heads else [], strict=True):
            if since is not None:
                oldest_s[model] = max(oldest_s[model], (now_ms - int(since)) / 1000)
        return {model: QueueState(depths[model], oldest_s[model]) for model in models}

    async def open_jobs(self, model: str, caller: str, limit: int = 100) -> list[tuple[str, str]]:
        """Up to ``limit`` jobs of a caller that ``model`` has not ended, running ones first, as (id, status).

        Of those that wait, only the first ``OPEN_LOOK`` of the model's queue are looked at.
        """
        async with _translated():
            running = await self._of(await self._ids(keys.LEASES, 0, -1), model, caller, limit)
            waiting: list[str] = []
            for start in range(0, OPEN_LOOK, 500):
                page = await self._ids(keys.READY + model, start, start + 499)
                waiting += await self._of(page, model, caller, limit - len(running) - len(waiting))
                if len(page) < 500 or len(running) + len(waiting) == limit:
                    break
        return [*((job_id, "running") for job_id in running), *((job_id, "starting") for job_id in waiting)]

    async def _of(self, job_ids: Sequence[str], model: str, caller: str, limit: int) -> list[str]:
        """The first ``limit`` of ``job_ids`` that are jobs of that model and caller."""
        pipe = self._redis.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hmget(keys.JOB + job_id, "model", "caller", "gone")
        found = await pipe.execute() if job_ids else []
        wanted = [model.encode(), caller.encode(), None]
        own = [job_id for job_id, whose in zip(job_ids, found, strict=True) if whose == wanted]
        return own[:limit]

    async def unfinished(self) -> int:
        """Jobs of all models that have not ended."""
        async with _translated():
            return int(await cast("Any", self._redis.hget(keys.TOTALS, "jobs")) or 0)

    async def release_bell(self, model: str) -> None:
        """The bell for ``model`` could not be sent: somebody else may ring."""
        async with _translated():
            await self._redis.delete(keys.RUNG + model)

    async def send_away(self, node: str) -> None:
        """Something else waits for a node: should its drain linger, it is to leave at once."""
        async with _translated():
            pipe = self._redis.pipeline(transaction=True)
            pipe.rpush(keys.WAKE + node, "leave")
            pipe.pexpire(keys.WAKE + node, keys.WAKE_TTL_MS)
            await pipe.execute()

    async def mark_starting(self, model: str) -> None:
        """Somebody asked for ``model`` to be loaded."""
        async with _translated():
            await self._redis.set(keys.STARTING + model, "1", ex=60)

    async def is_starting(self, model: str) -> bool:
        async with _translated():
            return bool(await self._redis.exists(keys.STARTING + model))

    async def ask(self, *commands: Command) -> list[Any]:
        """The replies to reading commands, over the connection that everybody shares."""
        async with _translated():
            return await self._ask(*commands)

    async def carry(self, *commands: Command) -> list[Any]:
        """The replies to commands of large values, for which nobody else is to wait."""
        async with _translated():
            pipe = self._redis.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute()

    async def _ask(self, *commands: Command) -> list[Any]:
        replies = await self._shared.execute(*commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def _ids(self, key: str, first: int, last: int) -> list[str]:
        found = cast("list[bytes]", await self._redis.zrange(key, first, last))
        return [job_id.decode() for job_id in found]

    async def _run_and_log(self, name: str, arguments: Sequence[scripts.Argument]) -> Any:
        """Runs a script that may end jobs by itself, and logs those."""
        reply, ends = await self.run(name, arguments)
        log_ends(scripts.read_finished(ends))
        return reply

    async def run(self, name: str, arguments: Sequence[scripts.Argument]) -> Any:
        """Runs the Lua script of that name."""
        script = scripts.script(name)
        packed = cast("list[str]", arguments)
        async with _translated():
            try:
                return await cast("Any", self._redis.evalsha(script.sha, 0, *packed))
            except NoScriptError:
                return await cast("Any", self._redis.eval(script.source, 0, *packed))


def _counter(name: bytes) -> tuple[str, str, str]:
    task, model, status = name.decode().split("|")
    return task, model, status


@asynccontextmanager
async def _translated() -> AsyncIterator[None]:
    """Turns what redis-py raises into errors that a caller of the API can act on."""
    try:
        yield
    except OutOfMemoryError:
        raise ModelmillError(
            ErrorCode.STORE_FULL,
            "The job store is out of memory; nothing was accepted. Try again later.",
            retry_after_s=10,
        ) from None
    except (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError) as error:
        raise ModelmillError(
            ErrorCode.STORE_UNAVAILABLE,
            "The job store does not answer. Try again shortly, "
            "with the same Idempotency-Key if you sent one.",
            retry_after_s=2,
        ) from error
    except ResponseError as error:
        # LOADING, MISCONF and the like: a server that is there and cannot serve.
        if str(error).split(" ", 1)[0] in {"LOADING", "MISCONF", "BUSY", "MASTERDOWN", "NOREPLICAS"}:
            raise ModelmillError(
                ErrorCode.STORE_UNAVAILABLE, "The job store is not ready. Try again shortly.", retry_after_s=2
            ) from error
        raise
    except RedisError as error:
        raise ModelmillError(
            ErrorCode.STORE_UNAVAILABLE, "The job store does not answer. Try again shortly.", retry_after_s=2
        ) from error
