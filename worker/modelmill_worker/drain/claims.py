"""The claims of one run: jobs leased under a fence, and settled or released under the same fence."""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from modelmill.errors import ModelmillError
from modelmill.store import Claimed, ClaimReply, ClaimRequest, Outcome, Released, Settlement
from modelmill_worker.drain.context import DrainContext, DrainThreads
from modelmill_worker.drain.ends import not_stored, report_end, too_large_for_redis
from modelmill_worker.drain.held import DONE, HeldResults
from modelmill_worker.drain.jobs import Job

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Pause between two tries while the store does not answer."""


class Claims:
    """The claims that one run makes for one model.

    The settle thread writes results, so that the drain thread does not wait. While the store does not answer,
    the results are kept and written again. The fence decides then which of them still count. A result that
    cannot be written while the store answers goes to the held results, which outlive this run.

    Args:
        context: The store, the leases and the recorder.
        threads: The settle thread.
        held: The held results of this process.
        model: The model's name.
        stopping: Once it is set, a failed claim is not tried again.
    """

    def __init__(
        self,
        context: DrainContext,
        threads: DrainThreads,
        held: HeldResults,
        model: str,
        stopping: threading.Event,
    ) -> None:
        self._context = context
        self._store = context.store
        self._leases = context.leases
        self._recorder = context.recorder
        self._threads = threads
        self._held = held
        self._model = model
        self._stopping = stopping
        self._lock = threading.Lock()
        self._open: dict[str, Claimed] = {}
        """Claimed and not settled, by id. Under the lock: the thread that claims (drain or ahead) adds, the
        settle thread removes."""
        self._writes: list[Future[None]] = []
        """Writes that are under way. Drain thread only."""
        self.settled = 0
        """Jobs that this run has ended. Written by the settle thread, read after the last write."""
        self.claimed_at = 0.0
        """``time.monotonic`` of the last claim. Written by the thread that claims."""

    def claim(self, count: int, linger_s: float = 0.0) -> ClaimReply:
        """Claims up to ``count`` jobs of the model.

        Raises:
            RedisError: the store refused the claim, or ``stopping`` is set and the store does not answer.
        """
        fence = uuid.uuid4().hex
        self.claimed_at = time.monotonic()
        self._recorder.note_claim(fence)
        reply = self._claim_until_answered(fence, count, linger_s)
        self._leases.hold(reply.jobs)
        with self._lock:
            self._open |= {job.id: job for job in reply.jobs}
        if not reply.jobs:
            self._recorder.note_settled(fence)
        return reply

    def _claim_until_answered(self, fence: str, count: int, linger_s: float) -> ClaimReply:
        """Claims, and repeats the claim with the same fence if the reply is lost.

        The lost claim may have leased jobs to the fence. Only the same claim finds them.
        """
        request = ClaimRequest(
            model=self._model,
            fence=fence,
            node=self._context.node,
            count=count,
            max_bytes=self._context.settings.claim_bytes,
            linger_s=linger_s,
            served=self._context.served,
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

    def drop_canceled_and_lost(self, jobs: list[Job]) -> None:
        """Marks canceled jobs, and removes jobs whose lease this process has lost."""
        for job in list(jobs):
            if self._leases.is_lost(job.claimed.id):
                jobs.remove(job)
                self._forget([job.claimed.id])
                logger.warning("job %s: its lease was lost, so its result is discarded", job.claimed.id)
            elif self._leases.is_canceled(job.claimed.id):
                job.canceled = True

    def settle_later(self, outcomes: Sequence[Outcome]) -> None:
        """Hands outcomes to the settle thread."""
        self._writes.append(self._threads.settle.submit(self.settle, outcomes))

    def save_parts_later(self, job_id: str, finished: dict[int, str]) -> None:
        """Hands finished items of a job that goes on to the settle thread."""
        self._writes.append(self._threads.settle.submit(self._save_parts, job_id, finished))

    def settle(self, outcomes: Sequence[Outcome | Released]) -> None:
        """Writes outcomes and waits for the store, however long it takes.

        A result that cannot be written now is held aside: other jobs must not wait for it.
        """
        ready, unwritten = [], []
        for outcome in outcomes:
            if self._held.must_wait(outcome):
                unwritten.append((outcome, Settlement.NOT_NOW))
            else:
                ready.append(outcome)
        settlements = self._until_answered(lambda: self._store.settle(ready, storing=self._recorder.storing))
        written = []
        for outcome, settlement in zip(ready, settlements, strict=True):
            if settlement in DONE:
                written.append(outcome.id)
                if isinstance(outcome, Outcome):
                    self._note_end(outcome, settlement)
            else:
                unwritten.append((outcome, settlement))
        self._forget(written)
        for outcome, settlement in unwritten:
            self._set_aside(outcome, settlement)

    def _set_aside(self, outcome: Outcome | Released, settlement: Settlement) -> None:
        """Finds another way for an outcome that cannot be written as it is."""
        claimed = self._open.get(outcome.id)
        if claimed is None or not isinstance(outcome, Outcome):
            logger.error("job %s: the job store refuses its release; its lease runs out", outcome.id)
        elif settlement is Settlement.TOO_LARGE:
            self._give_up(outcome, claimed, too_large_for_redis())
        elif self._held.hold(outcome, claimed, self._model):
            # Its lease goes on.
            with self._lock:
                self._open.pop(outcome.id, None)
            return
        else:
            self._give_up(outcome, claimed, not_stored(self._held.trouble(outcome)))
        self._forget([outcome.id])

    def _give_up(self, outcome: Outcome, claimed: Claimed, why: ModelmillError) -> None:
        act = partial(self._held.last_resort, outcome, claimed, self._model, why)
        if not self._until_answered(act):
            logger.error("job %s: the job store refuses each end of it; its lease runs out", outcome.id)

    def _until_answered(self, act: Callable[[], T]) -> T:
        """Acts, again and again while the store does not answer or refuses everything."""
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                return act()
            except RedisError as error:
                logger.warning("settling jobs of %s failed, trying again: %s", self._model, error)
                time.sleep(pause_s)
                pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    def settle_all_or_release(self) -> None:
        """Waits until all outcomes are written, then releases the jobs that have none."""
        while self._writes:
            self._writes.pop(0).result()
        if self._open:
            logger.info("giving back %d jobs", len(self._open))
            self.settle([Released(job.id, job.fence) for job in self._open.values()])

    def abandon(self) -> None:
        """After an unexpected error, stops renewing the leases of the jobs that are left.

        Their leases run out, which counts as a delivery. The limit on deliveries ends a job that causes such
        an error each time.
        """
        self._writes.clear()
        self._leases.drop(list(self._open))
        self._open.clear()

    def _note_end(self, outcome: Outcome, settlement: Settlement) -> None:
        claimed = self._open.get(outcome.id)
        if claimed is None:
            return
        report_end(outcome, claimed, self._model, settlement)
        self.settled += settlement is Settlement.OK

    def _save_parts(self, job_id: str, finished: dict[int, str]) -> None:
        try:
            self._store.save_parts(job_id, finished)
        except RedisError as error:
            # Only a retry would use them.
            logger.warning("job %s: its finished items were not saved: %s", job_id, error)

    def _forget(self, job_ids: Iterable[str]) -> None:
        """Stops renewing the leases of jobs that this process no longer has."""
        with self._lock:
            gone = [job_id for job_id in job_ids if self._open.pop(job_id, None) is not None]
        for fence in self._leases.drop(gone):
            self._recorder.note_settled(fence)
