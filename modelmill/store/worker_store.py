"""The store that workers use, with blocking calls."""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, cast

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import NoScriptError, RedisError
from redis.retry import Retry

from modelmill.blobs import BlobError, BlobStore
from modelmill.settings import Settings
from modelmill.store import keys, scripts
from modelmill.store.arguments import Argument, pack
from modelmill.store.end_log import log_unreported_ends
from modelmill.store.nodes import NodeRecord, node_records
from modelmill.store.records import (
    Beat,
    Claimed,
    ClaimReply,
    ClaimRequest,
    JobProgress,
    Outcome,
    Reaped,
    Released,
    Settlement,
    Wake,
)
from modelmill.store.results import ResultWriter, Storing
from modelmill.store.server_errors import is_temporary

logger = logging.getLogger(__name__)

PARTS_TTL_S = 7 * 86_400


class WorkerStore:
    """Claims, beats, settles and reaps. Thread-safe; every call may be replayed.

    If Redis does not answer for a few seconds, every method raises ``redis.exceptions.ConnectionError``
    or ``TimeoutError``; if the blob store does not, ``BlobError``. The caller keeps its jobs and tries
    again later.
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
        self._results = ResultWriter(settings, self._redis, self._blobs)

    def close(self) -> None:
        self._redis.close()

    def claim(self, request: ClaimRequest) -> ClaimReply:
        """Leases up to ``request.count`` jobs of a model."""
        arguments = scripts.pack_claim(request, self._settings)
        return scripts.read_claim(request.fence, self._run_and_log("claim", arguments))

    def linger(self, node: str, timeout_s: float) -> Wake | None:
        """Waits for the word that wakes a node which lingers; None if none came in time."""
        woken = cast("list[bytes] | None", self._redis.blpop([keys.WAKE + node], timeout=timeout_s))
        return Wake(woken[1].decode()) if woken else None

    def stop_lingering(self, model: str, node: str) -> bool:
        """The node stops to linger. Returns False if it was woken meanwhile: then it must claim once more."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.srem(keys.IDLE + model, node)
        pipe.srem(keys.LINGERING, node)
        pipe.delete(keys.WAKE + node)
        return bool(pipe.execute()[0])

    def send_away(self, node: str) -> None:
        """A message waits for this node: if its drain lingers, it must leave at once."""
        pipe = self._redis.pipeline(transaction=True)
        pipe.rpush(keys.WAKE + node, Wake.LEAVE.value)
        pipe.pexpire(keys.WAKE + node, keys.WAKE_TTL_MS)
        pipe.execute()

    def inputs(self, jobs: Sequence[Claimed]) -> list[bytes | None]:
        """The request bodies of claimed jobs, in order."""
        in_redis = [job.id for job in jobs if job.blob is None]
        found = cast(
            "list[bytes | None]", self._redis.mget([keys.INPUT + id for id in in_redis]) if in_redis else []
        )
        bodies = dict(zip(in_redis, found, strict=True))
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
            logger.error("requests are in a blob store, but MODELMILL_BLOB_URL is not set for this process")
            raise BlobError
        return {}

    def beat(
        self, claimed: Sequence[tuple[str, str]], progress: Mapping[str, JobProgress] | None = None
    ) -> Beat:
        """Extends the leases of jobs, given as ``(id, fence)``, and records the progress of some, by id."""
        return scripts.read_beat(
            self._run("beat", scripts.pack_beat(claimed, progress or {}, self._settings))
        )

    def settle(
        self, outcomes: Sequence[Outcome | Released], *, spill: bool = False, storing: Storing = nullcontext
    ) -> list[Settlement]:
        """Ends jobs or gives them back. Large results are written first, into keys of their own or blobs.

        One outcome that cannot be written does not affect the others.

        Args:
            outcomes: Ends of jobs, and releases.
            spill: Results for the blob store go to Redis instead.
            storing: Open while a call of the blob store is under way.

        Returns:
            A verdict for each.

        Raises:
            RedisError: the server does not answer, or refuses all commands for now. Nothing is known of the
                outcomes: settle them again.
        """
        if not outcomes:
            return []
        written = self._results.write(outcomes, spill=spill, storing=storing)
        if not written.refused:
            verdicts = self._settle_written(outcomes, written.blobs)
        else:
            ready = [outcome for index, outcome in enumerate(outcomes) if index not in written.refused]
            settled = iter(self._settle_written(ready, written.blobs) if ready else ())
            verdicts = [written.refused.get(index) or next(settled) for index in range(len(outcomes))]
        if written.blobs:
            self._results.drop_refused(outcomes, verdicts, written.blobs, storing)
        return verdicts

    def is_for_blobs(self, outcome: Outcome | Released) -> bool:
        """Whether the outcome's result goes to the blob store."""
        return self._results.is_for_blobs(outcome)

    def _settle_written(
        self, outcomes: Sequence[Outcome | Released], blobs: Collection[str]
    ) -> list[Settlement]:
        try:
            arguments = scripts.pack_settle(outcomes, self._settings, blobs)
            return scripts.read_settle(self._run_and_log("settle", arguments))
        except RedisError as error:
            if is_temporary(error):
                raise
            if len(outcomes) == 1:
                logger.error("job %s: its end is refused: %s", outcomes[0].id, error)
                return [Settlement.UNWRITABLE]
        # One of them may be the reason. A job that the script has ended by then gets the same verdict again.
        return [verdict for outcome in outcomes for verdict in self._settle_written([outcome], blobs)]

    def reap(self) -> Reaped:
        """Returns jobs of expired leases to the queue, ends jobs at their deadline, and says which
        bells to send."""
        return scripts.read_reap(self._run_and_log("reap", scripts.pack_reap(self._settings)))

    def release_bell(self, model: str) -> None:
        """The bell arrived, or could not be sent: the next one may be sent at once."""
        self._redis.delete(keys.BELL_SENT + model)

    def parts(self, job_id: str) -> dict[int, str]:
        """The finished items of a batched job that an earlier claim began: JSON text by index."""
        found = cast("dict[bytes, bytes]", self._redis.hgetall(keys.PARTS + job_id))
        return {int(index): text.decode() for index, text in found.items()}

    def save_parts(self, job_id: str, parts: Mapping[int, str]) -> None:
        """Keeps finished items of a batched job that goes on, so that a retry need not run them again.

        Also publishes how many items are done. Not fenced: a late writer only adds a valid result of
        the same item. An item that is written after the job's end is removed, or expires.
        """
        pipe = self._redis.pipeline(transaction=False)
        pipe.hset(keys.PARTS + job_id, mapping={str(index): text for index, text in parts.items()})
        pipe.expire(keys.PARTS + job_id, PARTS_TTL_S)
        # Results may be large, so they do not pass through Lua.
        arguments = pack("parts", id=job_id)
        pipe.evalsha(scripts.script("parts").sha, 0, *cast("list[str]", arguments))
        *written, published = pipe.execute(raise_on_error=False)
        if isinstance(published, NoScriptError):
            published = self._run("parts", arguments)
        for reply in (*written, published):
            if isinstance(reply, Exception):
                raise reply

    def depth(self, model: str) -> int:
        """Jobs that wait for ``model``."""
        return self._redis.zcard(keys.READY + model)

    def waiting(self, models: Collection[str]) -> list[str]:
        """Those of ``models`` that have waiting jobs."""
        found = {name.decode() for name in cast("set[bytes]", self._redis.smembers(keys.MODELS))}
        return [model for model in models if model in found and self.depth(model)]

    def nodes(self) -> list[NodeRecord]:
        """The live worker nodes."""
        names = sorted(name.decode() for name in cast("set[bytes]", self._redis.smembers(keys.NODES)))
        pipe = self._redis.pipeline(transaction=False)
        for name in names:
            pipe.hgetall(keys.NODE + name)
        return node_records(names, pipe.execute() if names else [])

    def claimed_under(self, fence: str) -> list[str]:
        """Ids of the jobs that a claim took, also of those that have ended since."""
        found = cast("list[bytes]", self._redis.lrange(keys.CLAIM + fence, 0, -1))
        return [job_id.decode() for job_id in found]

    def recall_sizing(self, model: str, device: str) -> dict[str, int]:
        """The batch sizes that workers learned for a model on a kind of device: ``cap`` and ``best``."""
        found = cast("bytes | None", self._redis.hget(keys.SIZING, f"{model}|{device}"))
        return json.loads(found) if found else {}

    def remember_sizing(self, model: str, device: str, sizing: Mapping[str, int]) -> None:
        self._redis.hset(keys.SIZING, f"{model}|{device}", json.dumps(sizing))

    def recall_memory(self, model: str, device: str) -> int:
        """The most memory that a model took when it was loaded on a kind of device, MiB; 0 if not known
        yet."""
        return int(cast("bytes | None", self._redis.hget(keys.SIZING, f"{model}|{device}|memory")) or 0)

    def remember_memory(self, model: str, device: str, memory_mib: int) -> None:
        # Not in the document of the batch size, which is always written as a whole.
        self._redis.hset(keys.SIZING, f"{model}|{device}|memory", memory_mib)

    def rate(self, model: str) -> float | None:
        """Jobs a second that a worker of ``model`` reported last."""
        found = cast("bytes | None", self._redis.hget(keys.RATES, model))
        return float(found) if found else None

    def report_rate(self, model: str, jobs_per_s: float) -> None:
        """Records the rate of a worker of ``model``, for estimates."""
        self._redis.hset(keys.RATES, model, f"{jobs_per_s:.4g}")

    def announce(self, node: str, part: str, document: Mapping[str, Any], ttl_s: float) -> None:
        """Announces a node's ``parent`` or ``child`` (``nodes.py``). Without renewal it expires after
        ``ttl_s``."""
        arguments = pack(
            "announce", node=node, part=part, document=json.dumps(document), ttl_ms=round(ttl_s * 1000)
        )
        self._run("announce", arguments)

    def retire(self, node: str) -> None:
        """Removes a node that stops from the list at once."""
        self._redis.delete(keys.NODE + node)
        self._redis.srem(keys.NODES, node)

    def clear_model_starting(self, model: str) -> None:
        """A worker took the request to load ``model``, and announces the phase of the model itself from
        now on."""
        self._redis.delete(keys.STARTING + model)

    def _run_and_log(self, name: str, arguments: Sequence[Argument]) -> Any:
        """The reply of a script that may end jobs by itself. These ends are logged."""
        reply, ends = self._run(name, arguments)
        log_unreported_ends(scripts.read_unreported_ends(ends))
        return reply

    def _run(self, name: str, arguments: Sequence[Argument]) -> Any:
        script = scripts.script(name)
        try:
            return self._redis.evalsha(script.sha, 0, *cast("list[str]", arguments))
        except NoScriptError:
            # The server is new or was restarted. EVAL also loads the script.
            return self._redis.eval(script.source, 0, *cast("list[str]", arguments))
