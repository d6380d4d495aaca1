"""Jobs that this process holds: claimed under a fence, and settled or given back under it."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from modelmill.blobs import BlobError
from modelmill.settings import Settings
from modelmill.store import Claimed, ClaimReply, ClaimRequest, Outcome, Released, Settlement, WorkerStore
from modelmill_worker import metrics
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.batches import Job, log_reported_end
from modelmill_worker.drain.leases import Leases

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Between two tries, while the job store is away."""


class Holdings:
    """Claims of one drain at a time; one object serves a process's whole life.

    Results are written behind, by a thread of their own. While the store is away they are held: the fence
    decides when it is back.
    """

    def __init__(
        self,
        settings: Settings,
        store: WorkerStore,
        leases: Leases,
        recorder: Recorder,
        node: str,
        served: Collection[str],
    ) -> None:
        self._settings = settings
        self._store = store
        self._leases = leases
        self._recorder = recorder
        self._node = node
        self._served = served
        self._open: dict[str, Claimed] = {}
        """Claimed and not settled, by id."""
        self._lock = threading.Lock()
        self._model = ""
        self._stopping = threading.Event()
        self._behind = ThreadPoolExecutor(1, "settle")
        self._without_room = ThreadPoolExecutor(1, "held")
        self._settling: list[Future[None]] = []
        self.settled = 0
        """Jobs that this process has ended."""
        self.claimed_at = 0.0
        """``time.monotonic`` of the last claim."""

    def begin(self, model: str, stopping: threading.Event) -> None:
        """All that follows is about ``model``. Once ``stopping`` is set, a claim is not tried again."""
        self._model, self._stopping = model, stopping

    def claim(self, count: int, linger_s: float = 0.0) -> ClaimReply:
        """Claims up to ``count`` jobs of the model."""
        fence = uuid.uuid4().hex
        self.claimed_at = time.monotonic()
        self._recorder.claiming(fence)
        claims = self._claim_until_answered(fence, count, linger_s)
        self._leases.hold(claims.jobs)
        with self._lock:
            self._open |= {job.id: job for job in claims.jobs}
        if not claims.jobs:
            self._recorder.settled(fence)
        return claims

    def _claim_until_answered(self, fence: str, count: int, linger_s: float) -> ClaimReply:
        """Claims. A lost reply may have leased jobs to ``fence``: only the same claim again finds them."""
        request = ClaimRequest(
            model=self._model,
            fence=fence,
            node=self._node,
            count=count,
            max_bytes=self._settings.claim_bytes,
            linger_s=linger_s,
            served=self._served,
        )
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return self._store.claim(request)
            except (RedisConnectionError, RedisTimeoutError) as error:
                if self._stopping.is_set():
                    raise
                logger.warning("claiming jobs of %s failed, trying again: %s", self._model, error)
                self._stopping.wait(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def drop_unwanted(self, jobs: list[Job]) -> None:
        """Marks jobs that were canceled, and takes those out that belong to somebody else by now."""
        for job in list(jobs):
            if self._leases.is_lost(job.claimed.id):
                jobs.remove(job)
                self._forget([job.claimed.id])
                logger.warning("job %s: its lease was lost, and so is this result of it", job.claimed.id)
            elif self._leases.is_canceled(job.claimed.id):
                job.canceled = True

    def settle_behind(self, outcomes: Sequence[Outcome]) -> None:
        """Writes outcomes, without waiting for it."""
        self._settling.append(self._behind.submit(self.settle, outcomes))

    def save_behind(self, job_id: str, finished: dict[int, str]) -> None:
        """Keeps finished items of a job that goes on, without waiting for it."""
        self._settling.append(self._behind.submit(self._save, job_id, finished))

    def settle(self, outcomes: Sequence[Outcome | Released]) -> None:
        """Writes outcomes, however long it takes."""
        homeless = self._settle(outcomes)
        if homeless:
            # The small results of others are not to wait for these, and may be what makes room.
            self._settling.append(self._without_room.submit(self._settle_when_there_is_room, homeless))

    def finish(self) -> None:
        """Waits until all outcomes are written, and gives back what has none."""
        while self._settling:
            self._settling.pop(0).result()
        if self._open:
            logger.info("giving back %d jobs", len(self._open))
            self.settle([Released(job.id, job.fence) for job in self._open.values()])

    def abandon(self) -> None:
        """After an unforeseen error nobody must go on beating for what is held.

        Its leases run out, and the delivery they cost keeps a job that causes such errors from coming back
        for ever.
        """
        self._settling.clear()
        self._leases.drop(list(self._open))
        self._open.clear()

    def close(self) -> None:
        for pool in (self._behind, self._without_room):
            pool.shutdown(wait=False, cancel_futures=True)

    def _settle_when_there_is_room(self, outcomes: Sequence[Outcome | Released]) -> None:
        logger.warning("the job store has no room for the results of %d jobs; holding them", len(outcomes))
        pause_s = FIRST_PAUSE_S
        while outcomes:
            time.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
            lost = {outcome.id for outcome in outcomes if self._leases.is_lost(outcome.id)}
            self._forget(lost)
            outcomes = self._settle([outcome for outcome in outcomes if outcome.id not in lost])

    def _settle(self, outcomes: Sequence[Outcome | Released]) -> list[Outcome | Released]:
        """Writes outcomes; gives those for whose results the store has no room now."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                verdicts = self._store.settle(outcomes)
                break
            except (RedisError, BlobError) as error:
                logger.warning("settling %d jobs failed, trying again: %s", len(outcomes), error)
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)
        homeless = []
        for outcome, verdict in zip(outcomes, verdicts, strict=True):
            if verdict in (Settlement.NO_ROOM, Settlement.MISSING):
                homeless.append(outcome)
            elif isinstance(outcome, Outcome):
                self._note_end(outcome, verdict)
        settled = {outcome.id for outcome in outcomes} - {outcome.id for outcome in homeless}
        self._forget(settled)
        return homeless

    def _note_end(self, outcome: Outcome, verdict: Settlement) -> None:
        claimed = self._open.get(outcome.id)
        if claimed is None:
            return
        log_reported_end(outcome, claimed, self._model, verdict)
        if verdict is Settlement.OK:
            self.settled += 1
            metrics.job_ended(claimed.task, self._model, outcome.status.value, claimed.queued_s)

    def _save(self, job_id: str, finished: dict[int, str]) -> None:
        try:
            self._store.save_parts(job_id, finished)
        except RedisError as error:
            # Only a retry would have gained from it.
            logger.warning("job %s: its finished items were not kept: %s", job_id, error)

    def _forget(self, job_ids: Iterable[str]) -> None:
        with self._lock:
            gone = [job for job_id in job_ids if (job := self._open.pop(job_id, None)) is not None]
            held = {job.fence for job in self._open.values()}
        self._leases.drop([job.id for job in gone])
        for fence in {job.fence for job in gone} - held:
            self._recorder.settled(fence)
