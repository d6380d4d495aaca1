"""The store that the API uses, with asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, cast

from redis.exceptions import NoScriptError

from modelmill.blobs import BlobStore
from modelmill.errors import ModelmillError
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import keys, scripts
from modelmill.store.arguments import pack
from modelmill.store.callers import KeyStore
from modelmill.store.connection import StoreConnection, translated
from modelmill.store.events import EventStore
from modelmill.store.files import FileStore
from modelmill.store.listing import JobListing
from modelmill.store.multiplex import Command
from modelmill.store.nodes import NodeRecord, node_records
from modelmill.store.records import (
    LANE_RANK,
    Cancellation,
    Deletion,
    JobRecord,
    Reaped,
    Submission,
    SubmitReply,
    Wake,
)
from modelmill.store.server_checks import ServerWatch
from modelmill.store.webhooks import WebhookStore

SHARED_BYTES = 1024 * 1024
"""Larger bodies use a connection of their own, to keep the shared one fast."""
OPEN_LOOK = 2000
"""How many waiting jobs of a model are searched for those of a caller."""


@dataclass(frozen=True, slots=True)
class Standing:
    """The place of a job that has not ended, and the figures for an estimate of its end."""

    position: int | None
    """Jobs before it in its model's queue; None if it is not in the queue."""
    jobs_per_s: float | None
    """The rate of one worker, as reported last."""
    items_done: int
    """Finished items of a batched job."""
    now: float
    """Seconds since the epoch, by the clock of Redis."""


@dataclass(frozen=True, slots=True)
class QueueState:
    """A model's queue, over all lanes."""

    depth: int
    """Jobs that wait."""
    oldest_s: float
    """How long the oldest of them has waited."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The state of the whole system, for metrics."""

    ended: Mapping[tuple[str, str, str], int]
    """All jobs that ever ended, by task, model and status."""
    queues: Mapping[str, QueueState]
    """By model: each model that had jobs lately, or has a worker."""
    nodes: Sequence[NodeRecord]


class ApiStore:
    """Submits, reads, cancels and reaps.

    If Redis fails, every method raises ``ModelmillError``, and so do those of the parts: ``files``,
    ``webhooks``, ``listing``, ``keys`` and ``events``.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.blobs = BlobStore.from_settings(settings)
        self._connection = StoreConnection(settings)
        self.files = FileStore(settings, self._connection, self.blobs)
        self.webhooks = WebhookStore(self._connection)
        self.listing = JobListing(self._connection, self.get)
        self.keys = KeyStore(self._connection)
        self.events = EventStore(self._connection)
        self.server = ServerWatch(self._connection)

    async def close(self) -> None:
        await self._connection.close()

    async def ping(self) -> None:
        async with translated():
            await cast("Any", self._connection.pooled.ping())

    async def submit(self, job: Submission) -> SubmitReply:
        """Accepts a job: writes its payload and runs the script, in one round trip.

        If the reply is lost, the caller gets a 503, although the job may be accepted. A retry with the same
        Idempotency-Key then gets the same job.
        """
        job = await self._placed(job)
        commands = self._submit_commands(job)
        async with translated():
            if job.blob is not None or len(job.body) <= SHARED_BYTES:
                replies = await self._connection.shared.execute(*commands)
            else:
                pipe = self._connection.pooled.pipeline(transaction=False)
                for command in commands:
                    pipe.execute_command(*command)
                replies = await pipe.execute(raise_on_error=False)
            return await self._read_submit(job, replies)

    async def is_known(self, caller: str, idempotency_key: str) -> bool:
        """Whether a job with this key exists, so that ``submit`` would accept no other."""
        (known,) = await self._connection.read(("GET", f"{keys.IDEMPOTENCY}{caller}:{idempotency_key}"))
        if known is None:
            return False
        job_id = known.decode().partition(" ")[0]
        ((task, gone),) = await self._connection.read(("HMGET", keys.JOB + job_id, "task", "gone"))
        return task is not None and gone is None

    async def submit_many(self, jobs: Sequence[Submission]) -> list[SubmitReply | ModelmillError]:
        """Accepts jobs in order; all in one round trip, unless their bodies are large."""
        if sum(len(job.body) for job in jobs) > SHARED_BYTES or any(map(self._is_for_blobs, jobs)):
            return [await self._submit_or_say(job) for job in jobs]
        packed = [self._submit_commands(job) for job in jobs]
        answers: list[SubmitReply | ModelmillError] = []
        try:
            async with translated():
                replies = await self._connection.shared.execute(*chain.from_iterable(packed))
        except ModelmillError as error:
            return [error] * len(jobs)
        at = 0
        for job, commands in zip(jobs, packed, strict=True):
            try:
                async with translated():
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
        """The job; a large body is written to the blob store first."""
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
        # `NX`: a retry after a lost reply must not overwrite the key and give the payload of an
        # accepted job a TTL.
        return [("SET", keys.INPUT + job.id, job.body, "EX", scripts.ORPHAN_TTL_S, "NX"), accept]

    async def _read_submit(self, job: Submission, replies: Sequence[Any]) -> SubmitReply:
        *written, reply = replies
        for refused in written:
            if isinstance(refused, Exception):
                raise refused
        if isinstance(reply, NoScriptError):
            arguments = cast("list[str]", scripts.pack_submit(job, self._settings))
            reply = await cast(
                "Any", self._connection.pooled.eval(scripts.script("submit").source, 0, *arguments)
            )
        if isinstance(reply, Exception):
            raise reply
        return scripts.read_submit(reply)

    async def get(self, job_id: str) -> JobRecord | None:
        """The job; None if it is unknown, deleted or expired."""
        (fields,) = await self._connection.read(("HGETALL", keys.JOB + job_id))
        if b"task" not in fields or b"gone" in fields:
            return None
        result = fields.get(b"result")
        if b"out" in fields:
            (result,) = await self._connection.read_large(("GET", fields[b"out"]))
        if b"out_blob" in fields:
            result = await self._read_blob(fields[b"out_blob"].decode())
        return JobRecord.from_hash(job_id, fields, result)

    async def _read_blob(self, name: str) -> bytes | None:
        return None if self.blobs is None else await asyncio.to_thread(self.blobs.get, name)

    async def request(self, job: JobRecord) -> bytes | None:
        """The body that a job was submitted with, if it is still there."""
        if job.blob is not None:
            return await self._read_blob(job.blob)
        (body,) = await self._connection.read_large(("GET", keys.INPUT + job.id))
        return cast("bytes | None", body)

    async def standing(self, job: JobRecord) -> Standing:
        """The standing of a job that had not ended when it was read."""
        position, rate, done, (seconds, micros) = await self._connection.read(
            ("ZRANK", keys.READY + job.model, job.id),
            ("HGET", keys.RATES, job.model),
            ("HLEN", keys.PARTS + job.id),
            ("TIME",),
        )
        return Standing(position, float(rate) if rate else None, done, int(seconds) + int(micros) / 1e6)

    async def ended(self, job_ids: Sequence[str]) -> list[str]:
        """Those of ``job_ids`` that have ended or no longer exist."""
        found: list[bytes | None] = []
        async with translated():
            for start in range(0, len(job_ids), 1000):
                pipe = self._connection.pooled.pipeline(transaction=False)
                for job_id in job_ids[start : start + 1000]:
                    pipe.hget(keys.JOB + job_id, "status")
                found += await pipe.execute()
        return [
            job_id
            for job_id, status in zip(job_ids, found, strict=True)
            if status is None or Status(status.decode()).is_terminal
        ]

    async def cancel(self, job_id: str) -> Cancellation:
        """Cancels a job that is queued, or requests it of the worker that runs the job."""
        arguments = pack("cancel", id=job_id, result_ttl_ms=self._settings.result_ttl_s * 1000)
        return Cancellation((await self._connection.run_and_log("cancel", arguments)).decode())

    async def delete(self, job_ids: Sequence[str]) -> list[Deletion]:
        """Removes jobs, and cancels those that run or wait."""
        arguments = pack("delete", job_ids, result_ttl_ms=self._settings.result_ttl_s * 1000)
        reply = await self._connection.run_and_log("delete", arguments)
        return [Deletion(verdict.decode()) for verdict in reply]

    async def reap(self) -> Reaped:
        """Returns jobs of expired leases to the queue, ends jobs at their deadline, and says which
        bells to send."""
        return scripts.read_reap(
            await self._connection.run_and_log("reap", scripts.pack_reap(self._settings))
        )

    async def nodes(self) -> list[NodeRecord]:
        """The live worker nodes."""
        async with translated():
            names = sorted(
                name.decode() for name in await cast("Any", self._connection.pooled.smembers(keys.NODES))
            )
            pipe = self._connection.pooled.pipeline(transaction=False)
            for name in names:
                pipe.hgetall(keys.NODE + name)
            found = await pipe.execute() if names else []
            gone = [name for name, fields in zip(names, found, strict=True) if not fields]
            if gone:
                await cast("Any", self._connection.pooled.srem(keys.NODES, *gone))
        return node_records(names, found)

    async def snapshot(self) -> Snapshot:
        """The state of the whole system, for metrics."""
        nodes = await self.nodes()
        async with translated():
            pipe = self._connection.pooled.pipeline(transaction=False)
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
        pipe = self._connection.pooled.pipeline(transaction=False)
        for model in models:
            pipe.zcard(keys.READY + model)
            # The head of each lane is its oldest job.
            for rank in LANE_RANK.values():
                first, end = f"{rank * keys.LANE_SPAN}", f"({(rank + 1) * keys.LANE_SPAN}"
                pipe.zrange(keys.READY + model, first, end, byscore=True, offset=0, num=1)
        replies = iter(await pipe.execute() if models else [])
        depths: dict[str, int] = {}
        heads: list[tuple[str, str]] = []
        for model in models:
            depths[model] = next(replies)
            heads += [(model, job_id.decode()) for _ in LANE_RANK for job_id in next(replies)]
        pipe = self._connection.pooled.pipeline(transaction=False)
        for _, job_id in heads:
            pipe.hget(keys.JOB + job_id, "created_ms")
        oldest_s = dict.fromkeys(models, 0.0)
        for (model, _), since in zip(heads, await pipe.execute() if heads else [], strict=True):
            if since is not None:
                oldest_s[model] = max(oldest_s[model], (now_ms - int(since)) / 1000)
        return {model: QueueState(depths[model], oldest_s[model]) for model in models}

    async def open_jobs(self, model: str, caller: str, limit: int = 100) -> list[tuple[str, Status]]:
        """Up to ``limit`` jobs of a caller for ``model`` that have not ended, as (id, status), running
        ones first.

        Only the first ``OPEN_LOOK`` jobs of the model's queue are searched.
        """
        async with translated():
            running = await self._of(await self._ids(keys.LEASES, 0, -1), model, caller, limit)
            waiting: list[str] = []
            for start in range(0, OPEN_LOOK, 500):
                page = await self._ids(keys.READY + model, start, start + 499)
                waiting += await self._of(page, model, caller, limit - len(running) - len(waiting))
                if len(page) < 500 or len(running) + len(waiting) == limit:
                    break
        return [
            *((job_id, Status.RUNNING) for job_id in running),
            *((job_id, Status.STARTING) for job_id in waiting),
        ]

    async def _of(self, job_ids: Sequence[str], model: str, caller: str, limit: int) -> list[str]:
        """The first ``limit`` of ``job_ids`` that belong to this model and caller."""
        pipe = self._connection.pooled.pipeline(transaction=False)
        for job_id in job_ids:
            pipe.hmget(keys.JOB + job_id, "model", "caller", "gone")
        found = await pipe.execute() if job_ids else []
        wanted = [model.encode(), caller.encode(), None]
        own = [job_id for job_id, whose in zip(job_ids, found, strict=True) if whose == wanted]
        return own[:limit]

    async def unfinished(self) -> int:
        """Jobs of all models that have not ended."""
        async with translated():
            return int(await cast("Any", self._connection.pooled.hget(keys.TOTALS, "jobs")) or 0)

    async def release_bell(self, model: str) -> None:
        """The bell for ``model`` could not be sent: another process may send one."""
        async with translated():
            await self._connection.pooled.delete(keys.BELL_SENT + model)

    async def send_away(self, node: str) -> None:
        """A message waits for this node: if its drain lingers, it must leave at once."""
        async with translated():
            pipe = self._connection.pooled.pipeline(transaction=True)
            pipe.rpush(keys.WAKE + node, Wake.LEAVE.value)
            pipe.pexpire(keys.WAKE + node, keys.WAKE_TTL_MS)
            await pipe.execute()

    async def mark_model_starting(self, model: str) -> None:
        """A caller asked to load ``model``."""
        async with translated():
            await self._connection.pooled.set(keys.STARTING + model, "1", ex=60)

    async def is_model_starting(self, model: str) -> bool:
        """Whether a caller asked to load ``model``, and no worker has begun yet."""
        async with translated():
            return bool(await self._connection.pooled.exists(keys.STARTING + model))

    async def _ids(self, key: str, first: int, last: int) -> list[str]:
        found = cast("list[bytes]", await self._connection.pooled.zrange(key, first, last))
        return [job_id.decode() for job_id in found]


def _counter(name: bytes) -> tuple[str, str, str]:
    task, model, status = name.decode().split("|")
    return task, model, status
