"""The blocking job store, for workers."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, cast

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoScriptError, OutOfMemoryError
from redis.retry import Retry

from modelmill.blobs import BlobError, BlobStore
from modelmill.settings import Settings
from modelmill.store import keys, scripts
from modelmill.store.ends import log_ends
from modelmill.store.records import (
    Beat,
    Claimed,
    ClaimReply,
    JobRecord,
    NodeRecord,
    Outcome,
    Progress,
    Reaped,
    Released,
    Settlement,
    node_records,
)

logger = logging.getLogger(__name__)

PARTS_TTL_S = 7 * 86_400


class WorkerStore:
    """Claims, beats, settles and reaps. Thread-safe; every call may be replayed.

    Raises ``redis.exceptions.ConnectionError`` or ``TimeoutError`` when the server stays away for a
    few seconds: callers hold what they have and come again. Likewise ``BlobError``, where a blob store is
    set up.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._blobs = BlobStore.from_settings(settings)
        self._redis = redis.Redis.from_url(
            settings.redis_url,
            socket_timeout=10,
            socket_connect_timeout=2,
            health_check_interval=30,
            retry=Retry(ExponentialBackoff(cap=1, base=0.05), retries=5),
        )

    def close(self) -> None:
        self._redis.close()

    def claim(
        self,
        model: str,
        fence: str,
        node: str,
        count: int,
        max_bytes: int,
        linger_s: float = 0.0,
        served: Iterable[str] = (),
    ) -> ClaimReply:
        """Leases up to ``count`` jobs of ``model``. A replay with the same ``fence`` gives the same jobs.

        With ``linger_s``, a claim that finds nothing says that the node stays for as long, and is to be
        woken by the next job instead of a bell: see ``linger``. Not if jobs wait for another model of those
        that the node serves: ``served``.
        """
        arguments = scripts.pack_claim(model, fence, node, count, max_bytes, linger_s, served, self._settings)
        return scripts.read_claim(fence, self._run_and_log("claim", arguments))

    def linger(self, node: str, timeout_s: float) -> str:
        """Waits for what wakes a node that lingers: ``go``, ``leave``, or nothing (an empty string)."""
        woken = cast("list[bytes] | None", self._redis.blpop([keys.WAKE + node], timeout=timeout_s))
        return woken[1].decode() if woken else ""

    def stop_lingering(self, model: str, node: str) -> bool:
        """The node leaves. Returns False if it has been counted on meanwhile, and must claim once more."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.srem(keys.IDLE + model, node)
        pipe.srem(keys.LINGERING, node)
        pipe.delete(keys.WAKE + node)
        return bool(pipe.execute()[0])

    def send_away(self, node: str) -> None:
        """Something else waits for a node: should it linger, it is to leave at once."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.rpush(keys.WAKE + node, "leave")
        pipe.pexpire(keys.WAKE + node, keys.WAKE_TTL_MS)
        pipe.execute()

    def inputs(self, jobs: Sequence[Claimed]) -> list[bytes | None]:
        """The request bodies of claimed jobs, in order."""
        beside = [job.id for job in jobs if job.blob is None]
        found = cast(
            "list[bytes | None]", self._redis.mget([keys.IN + id for id in beside]) if beside else []
        )
        bodies = dict(zip(beside, found, strict=True))
        blobs = self._read_blobs([job.blob for job in jobs if job.blob is not None])
        return [bodies[job.id] if job.blob is None else blobs[job.blob] for job in jobs]

    def read_file(self, file_id: str) -> bytes | None:
        """The content of a file that a job names."""
        pipe = self._redis.pipeline(transaction=False)
        pipe.hget(keys.FILE + file_id, "blob")
        pipe.get(keys.BLOB + file_id)
        blob, content = pipe.execute()
        if blob is None:
            return cast("bytes | None", content)
        return self._read_blobs([blob.decode()])[blob.decode()]

    def _read_blobs(self, names: Sequence[str]) -> dict[str, bytes | None]:
        if self._blobs is not None:
            return self._blobs.get_many(names)
        if names:
            logger.error("payloads lie in a blob store, and this process has no MODELMILL_BLOB_URL")
            raise BlobError
        return {}

    def beat(self, held: Sequence[tuple[str, str]], progress: Mapping[str, Progress] | None = None) -> Beat:
        """Extends the leases of ``(id, fence)`` pairs, and notes how far some of the jobs are."""
        return scripts.read_beat(self._run("beat", scripts.pack_beat(held, progress or {}, self._settings)))

    def settle(self, outcomes: Sequence[Outcome | Released]) -> list[Settlement]:
        """Ends jobs or gives them back; large results are written beside the records first.

        A verdict each. ``NO_ROOM`` of those whose large result the server has no memory for: the others are
        settled all the same.
        """
        if not outcomes:
            return []
        blobs = self._large_results(outcomes)
        if self._blobs is not None and blobs:
            self._blobs.put_many(blobs)
        has_room = [self._write_beside(outcome, blobs) for outcome in outcomes]
        written = [outcome for outcome, fits in zip(outcomes, has_room, strict=True) if fits]
        settled: Iterator[Settlement] = iter(())
        if written:
            arguments = scripts.pack_settle(written, self._settings, blobs)
            settled = iter(scripts.read_settle(self._run_and_log("settle", arguments)))
        verdicts = [next(settled) if fits else Settlement.NO_ROOM for fits in has_room]
        self._drop_refused(outcomes, verdicts, blobs)
        return verdicts

    def _write_beside(self, outcome: Outcome | Released, blobs: Collection[str]) -> bool:
        """Writes a result that is to lie beside its record. False if the server has no room for it."""
        large = scripts.large_result(outcome)
        if not isinstance(outcome, Outcome) or not large or scripts.out_blob(outcome) in blobs:
            return True
        try:
            # Not over itself: again after a lost reply, it would cut the time to live of an ended job's.
            self._redis.set(keys.out(outcome.id, outcome.fence), large, ex=scripts.ORPHAN_TTL_S, nx=True)
        except OutOfMemoryError:
            return False
        return True

    def _large_results(self, outcomes: Sequence[Outcome | Released]) -> dict[str, bytes]:
        """Results that go to the blob store, by the name that they get there."""
        if self._blobs is None:
            return {}
        return {
            scripts.out_blob(outcome): outcome.result
            for outcome in outcomes
            if isinstance(outcome, Outcome)
            and outcome.result
            and len(outcome.result) >= self._settings.blob_min_bytes
        }

    def _drop_refused(
        self,
        outcomes: Sequence[Outcome | Released],
        verdicts: Sequence[Settlement],
        blobs: Mapping[str, bytes],
    ) -> None:
        refused = {
            scripts.out_blob(outcome)
            for outcome, verdict in zip(outcomes, verdicts, strict=True)
            if isinstance(outcome, Outcome) and verdict is not Settlement.OK
        }.intersection(blobs)
        if self._blobs is None or not refused:
            return
        try:
            self._blobs.delete(refused)
        except BlobError as error:
            logger.warning("refused results stay until orphans are swept: %s", error)

    def reap(self) -> Reaped:
        """Returns expired leases and overdue jobs, and wins the right to ring for waiting models."""
        return scripts.read_reap(self._run_and_log("reap", scripts.pack_reap(self._settings)))

    def may_ring(self, model: str) -> bool:
        """Wins the right to ring for ``model``, if no bell of its is on the way."""
        return bool(self._redis.set(keys.RUNG + model, "1", nx=True, px=round(scripts.RUNG_TTL_S * 1000)))

    def release_bell(self, model: str) -> None:
        """The bell arrived, or could not be sent: whoever next has a reason may ring again."""
        self._redis.delete(keys.RUNG + model)

    def get(self, job_id: str) -> JobRecord | None:
        """The job, or None when it is unknown or its time to live is over."""
        fields = cast("dict[bytes, bytes]", self._redis.hgetall(keys.JOB + job_id))
        if b"task" not in fields:
            return None
        result = fields.get(b"result")
        if b"out" in fields:
            result = cast("bytes | None", self._redis.get(fields[b"out"].decode()))
        if b"out_blob" in fields:
            blob = fields[b"out_blob"].decode()
            result = self._read_blobs([blob])[blob]
        return JobRecord.from_hash(job_id, fields, result)

    def parts(self, job_id: str) -> dict[int, str]:
        """Finished items of a batched job that was begun before: JSON text by index."""
        found = cast("dict[bytes, bytes]", self._redis.hgetall(keys.PARTS + job_id))
        return {int(index): text.decode() for index, text in found.items()}

    def save_parts(self, job_id: str, parts: Mapping[int, str]) -> None:
        """Keeps finished items of a batched job that goes on, so that a retry need not run them again.

        Whoever follows the job is told how many there are. Not fenced: a late writer only adds a valid
        result of the same item. What it writes after the job's end goes again, or expires by itself.
        """
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(keys.PARTS + job_id, mapping={str(index): text for index, text in parts.items()})
        pipe.expire(keys.PARTS + job_id, PARTS_TTL_S)
        # Results may be large: they do not pass through Lua.
        pipe.evalsha(scripts.script("parts").sha, 0, job_id)
        *kept, told = pipe.execute(raise_on_error=False)
        if isinstance(told, NoScriptError):
            told = self._run("parts", [job_id])
        for reply in (*kept, told):
            if isinstance(reply, Exception):
                raise reply

    def depth(self, model: str) -> int:
        """Jobs that wait for ``model``."""
        return self._redis.zcard(keys.READY + model)

    def nodes(self) -> list[NodeRecord]:
        """The worker nodes that live."""
        names = sorted(name.decode() for name in cast("set[bytes]", self._redis.smembers(keys.NODES)))
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(keys.NODE + name)
        return node_records(names, pipe.execute() if names else [])

    def claimed_under(self, fence: str) -> list[str]:
        """Ids that a claim took, whatever became of them since."""
        found = cast("list[bytes]", self._redis.lrange(keys.CLAIM + fence, 0, -1))
        return [job_id.decode() for job_id in found]

    def recall_sizing(self, model: str, device: str) -> dict[str, int]:
        """What workers learned of a model's batch size on a kind of device: ``cap`` and ``best``."""
        found = cast("bytes | None", self._redis.hget(keys.SIZING, f"{model}|{device}"))
        return json.loads(found) if found else {}

    def remember_sizing(self, model: str, device: str, sizing: Mapping[str, int]) -> None:
        self._redis.hset(keys.SIZING, f"{model}|{device}", json.dumps(sizing))

    def recall_memory(self, model: str, device: str) -> int:
        """The most memory that a model took when loaded on a kind of device, MiB; 0 if nobody knows yet."""
        return int(cast("bytes | None", self._redis.hget(keys.SIZING, f"{model}|{device}|memory")) or 0)

    def remember_memory(self, model: str, device: str, memory_mib: int) -> None:
        # Apart from the batch size, which is written as a whole by who learned it.
        self._redis.hset(keys.SIZING, f"{model}|{device}|memory", memory_mib)

    def rate(self, model: str) -> float | None:
        """Jobs a second that a worker of ``model`` reported last."""
        found = cast("bytes | None", self._redis.hget(keys.RATES, model))
        return float(found) if found else None

    def report_rate(self, model: str, jobs_per_s: float) -> None:
        """How fast a worker of ``model`` gets on, for estimates."""
        self._redis.hset(keys.RATES, model, f"{jobs_per_s:.4g}")

    def announce(self, node: str, part: str, document: Mapping[str, Any], ttl_s: float) -> None:
        """Says what a node's ``parent`` or ``child`` is; forgotten after ``ttl_s`` without renewal."""
        self._run("announce", [node, part, json.dumps(document), round(ttl_s * 1000)])

    def retire(self, node: str) -> None:
        """Takes a node that leaves out of the list at once."""
        self._redis.delete(keys.NODE + node)
        self._redis.srem(keys.NODES, node)

    def load_began(self, model: str) -> None:
        """A worker took up the request to load ``model``, and says itself how that stands."""
        self._redis.delete(keys.STARTING + model)

    def _run_and_log(self, name: str, arguments: Sequence[scripts.Argument]) -> Any:
        """Runs a script that may end jobs by itself, and logs those."""
        reply, ends = self._run(name, arguments)
        log_ends(scripts.read_finished(ends))
        return reply

    def _run(self, name: str, arguments: Sequence[scripts.Argument]) -> Any:
        script = scripts.script(name)
        try:
            return self._redis.evalsha(script.sha, 0, *cast("list[str]", arguments))
        except NoScriptError:
            # A new server, or one that was restarted: EVAL loads what it runs.
            return self._redis.eval(script.source, 0, *cast("list[str]", arguments))
