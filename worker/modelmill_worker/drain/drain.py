"""A drain: works off one model's queue for one time slice.

It claims jobs and prepares them, runs them in batches, settles what is done, and goes on until the queue is
empty or the time slice ends. While one portion is in ``forward``, another thread prepares the next portion or
claims more jobs, and a third thread writes results.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from modelmill.errors import ModelmillError
from modelmill.store import Wake
from modelmill_backends.loader import LoadedModel
from modelmill_worker import metrics
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.batches import PassObserver, form_batches, run_batch
from modelmill_worker.drain.claims import Claims
from modelmill_worker.drain.context import DrainContext, DrainThreads
from modelmill_worker.drain.held import HeldResults
from modelmill_worker.drain.jobs import Item, Job, close_job, part_text
from modelmill_worker.drain.leases import Leases
from modelmill_worker.drain.measurements import Measurements
from modelmill_worker.drain.preparation import ClaimedJobs, Preparer
from modelmill_worker.drain.progress import PassProgress
from modelmill_worker.drain.sizing import BatchSizer

logger = logging.getLogger(__name__)

AHEAD_AFTER_S = 0.005
"""If a portion takes less than this, nothing is claimed ahead beside it while the queue is empty."""
AHEAD_UP_TO_S = 5.0
"""If a portion takes longer than this, nothing is claimed ahead: it would gain little, and other nodes
could run the jobs meanwhile."""
PAUSE_PER_JOB_S, LONGEST_PAUSE_S = 0.0005, 0.003
"""The pause between two claims for each job of the first claim, and its limit. See ``_let_jobs_gather``."""
LINGER_STEP_S = 0.2
"""The longest single wait of a drain that lingers. SIGTERM does not end a wait."""


class Drain:
    """Makes the runs of a process, one after another. One object serves a process's whole life."""

    def __init__(self, context: DrainContext) -> None:
        self._context = context
        self._threads = DrainThreads()
        self._held = HeldResults(context.settings, context.store, context.leases, context.recorder)
        self._preparer = Preparer(context.settings, context.store, context.recorder)
        self.measurements = Measurements(context.settings, context.store)

    def run(self, model: LoadedModel, stopping: threading.Event, load_s: float = 0.0) -> bool:
        """Drains ``model``'s queue for one time slice. Returns whether jobs may remain in it.

        When ``stopping`` is set, the current batch is finished and all other jobs are released.

        Args:
            model: The model.
            stopping: Checked between batches.
            load_s: How long the model was loaded just before, if it was.

        Raises:
            DeviceLostError: this process cannot go on. Its parent returns the jobs that it had claimed.
            RedisError: the store does not answer, and nothing was claimed.
        """
        run = DrainRun(
            self._context,
            model,
            stopping,
            preparer=self._preparer,
            measurements=self.measurements,
            threads=self._threads,
            held=self._held,
        )
        return run.work_off(load_s)

    def fail_waiting(self, model: str, error: ModelmillError, stopping: threading.Event) -> None:
        """Fails the waiting jobs of a model that cannot be loaded, with the reason."""
        deadline = time.monotonic() + self._context.settings.slice_s
        claims = Claims(self._context, self._threads, self._held, model, stopping)
        details = {"node": self._context.node, "device": self._context.device}
        while time.monotonic() < deadline:
            reply = claims.claim(256)
            if not reply.jobs:
                return
            claims.settle([close_job(Job(claimed, error=error), details) for claimed in reply.jobs])

    def release_held(self) -> None:
        """Tries once more to write the held results, and gives their jobs back. The process ends now."""
        self._held.close()

    def close(self) -> None:
        self.release_held()
        self._threads.close()
        self._preparer.close()


class DrainRun:
    """One run over one model's queue.

    The drain thread calls everything here, except where a method says that it is for the ahead thread.
    """

    def __init__(
        self,
        context: DrainContext,
        model: LoadedModel,
        stopping: threading.Event,
        *,
        preparer: Preparer,
        measurements: Measurements,
        threads: DrainThreads,
        held: HeldResults,
    ) -> None:
        self._context = context
        self._model = model
        self._stopping = stopping
        """The handler of SIGTERM sets it, all threads read it."""
        self._preparer = preparer
        self._measurements = measurements
        self._sizer = measurements.sizer(model)
        """The drain thread writes, the ahead thread reads the size."""
        self._ahead = threads.ahead
        self._claims = Claims(context, threads, held, model.name, stopping)
        self._details = _details(context, model)
        started = time.monotonic()
        self._started_at = started
        self._slice_ends_at = started + context.settings.slice_s
        self._leave_at = started + context.settings.longest_drain_s
        self._linger_s = context.settings.linger_s
        """0 when the run does not linger again. Drain thread only."""
        self._idle_s = 0.0
        """How long the run has lingered. Drain thread only."""
        self._left_unfinished = False
        """The run stopped early, and some claimed jobs were not finished. Drain thread only."""

    def work_off(self, load_s: float) -> bool:
        """Runs until the queue is empty or the time slice ends. See ``Drain.run``."""
        self._context.recorder.note_draining(self._model.name)
        try:
            remaining = self._claim_and_run(load_s)
            self._claims.settle_all_or_release()
        finally:
            # After an error, a claim ahead may still be under way. Wait for it: no thread would run its jobs.
            self._ahead.submit(lambda: None).result()
            self._claims.abandon()
        self._context.recorder.note_idle()
        busy_s = time.monotonic() - self._started_at - self._idle_s
        self._measurements.store(self._model, self._claims.settled, busy_s)
        return remaining > 0 or self._left_unfinished

    def _claim_and_run(self, load_s: float) -> int:
        """Claims and runs, again and again. Returns how many jobs the last claim left in the queue."""
        jobs = self._fetch(linger_s=self._linger_s)
        for job in jobs.opened:
            job.load_s = min(load_s, job.claimed.queued_s)
        # Just claimed: no point in claiming again, unless the model waits for more.
        fill_up = waits = self._model.context.entry.max_wait_ms is not None
        taken = 0
        while not self._left_unfinished:
            if jobs.is_empty:
                if not (jobs.lingers and self._linger()):
                    break
                self._let_jobs_gather(taken)
                jobs = self._fetch(linger_s=self._linger_s)
                continue
            self._open(jobs)
            if fill_up and not jobs.pending:
                self._fill_up(jobs)
            if not jobs.pending and (self._is_slice_over() or self._stopping.is_set()):
                self._run_portion(jobs, jobs.ready)
                break
            taken = len(jobs.opened)
            jobs = self._run_and_look_ahead(jobs)
            fill_up = waits or bool(jobs.opened)
            if jobs.is_empty and not self._left_unfinished and not self._stopping.is_set():
                # Jobs may have come while the last batch ran: look once more before leaving.
                self._let_jobs_gather(taken)
                jobs = self._fetch(linger_s=self._linger_s)
        return jobs.remaining

    def _is_slice_over(self) -> bool:
        return time.monotonic() >= self._slice_ends_at

    def _run_and_look_ahead(self, jobs: ClaimedJobs) -> ClaimedJobs:
        """Runs a portion of ``jobs``, and returns what comes next: the same jobs, or those of another claim.

        The ahead thread prepares that meanwhile. Beside a suspect it does not: if the process dies, only the
        suspect may be in progress.
        """
        portion, jobs.ready = jobs.ready, []
        goes_on = bool(jobs.pending)
        started = time.monotonic()
        if jobs.has_suspect or not (goes_on or (not self._is_slice_over() and self._is_worth_a_claim(jobs))):
            self._run_portion(jobs, portion)
            if goes_on and not self._left_unfinished:
                self._prepare(jobs)
            following = jobs if goes_on else ClaimedJobs()
        else:
            if goes_on:
                ahead = self._ahead.submit(self._prepare, jobs)
            else:
                ahead = self._ahead.submit(self._fetch, ahead=True)
            self._run_portion(jobs, portion)
            following = ahead.result()
        self._measurements.portion_s[self._model.name] = time.monotonic() - started
        return following

    def _is_worth_a_claim(self, jobs: ClaimedJobs) -> bool:
        """Whether to claim ahead. If the queue is empty, a claim only slows a very short batch down."""
        expected_s = self._measurements.portion_s.get(self._model.name, AHEAD_AFTER_S)
        brief = expected_s < AHEAD_AFTER_S and not jobs.remaining
        return not brief and expected_s <= AHEAD_UP_TO_S

    def _let_jobs_gather(self, taken: int) -> None:
        """Pauses before a claim if jobs come by the thousand a second.

        Each claim costs time, here and in the store. The pause is half a millisecond for each job of the last
        claim. At fewer than two thousand jobs a second it is over before the next job comes, and delays none.
        """
        pause_s = min(taken * PAUSE_PER_JOB_S, LONGEST_PAUSE_S)
        left_s = self._claims.claimed_at + pause_s - time.monotonic()
        if taken > 1 and left_s > 0:
            time.sleep(left_s)

    def _linger(self) -> bool:
        """Waits for a moment at the empty queue. Returns whether to claim again."""
        store, node = self._context.store, self._context.node
        started = time.monotonic()
        woken: Wake | None = None
        while woken is None and not self._stopping.is_set():
            left_s = started + self._linger_s - time.monotonic()
            if left_s <= 0:
                break
            woken = store.linger(node, max(0.001, min(left_s, LINGER_STEP_S)))
        self._idle_s += time.monotonic() - started
        if woken is not Wake.GO:
            if store.stop_lingering(self._model.name, node):
                return False
            # A submit has counted on this node and rung no bell: claim its job, then leave.
            self._linger_s = 0.0
        elif self._is_slice_over():
            self._linger_s = 0.0
        return True

    def _fill_up(self, jobs: ClaimedJobs) -> None:
        """Claims more jobs until they fill a batch.

        Waits for them only if the model's ``max_wait_ms`` is set.
        """
        size = self._sizer.size
        wait_until = time.monotonic() + (self._model.context.entry.max_wait_ms or 0) / 1000
        while (
            (missing := size - len(jobs.ready)) > 0 and not jobs.has_suspect and not self._stopping.is_set()
        ):
            more = self._fetch(missing)
            jobs.add(more)
            if more.is_empty:
                if time.monotonic() >= wait_until:
                    return
                time.sleep(min(0.005, max(0.0, wait_until - time.monotonic())))

    def _fetch(self, count: int | None = None, linger_s: float = 0.0, *, ahead: bool = False) -> ClaimedJobs:
        """Claims jobs for a batch, and prepares their first portion. Also for the ahead thread.

        With ``ahead``, a suspect is claimed but not opened: the drain thread is running another batch.
        """
        try:
            reply = self._claims.claim(count or self._sizer.size, linger_s)
        except RedisError as error:
            logger.warning("claiming jobs of %s failed: %s", self._model.name, error)
            return ClaimedJobs()
        jobs = ClaimedJobs(list(reply.jobs), remaining=reply.remaining, lingers=reply.lingers)
        if not (ahead and jobs.has_suspect):
            self._open(jobs)
        return jobs

    def _open(self, jobs: ClaimedJobs) -> None:
        """Opens what was claimed, if it is not open yet, and prepares the first portion.

        Also for the ahead thread.
        """
        if not jobs.unopened:
            return
        try:
            self._preparer.open(self._model, jobs)
        except RedisError as error:
            logger.warning("reading jobs of %s failed: %s", self._model.name, error)
            # These jobs are released at the end of the run, and the reaper rings for them later. A bell at
            # once would only fail again.
            jobs.remaining = 0
            return
        self._prepare(jobs)

    def _prepare(self, jobs: ClaimedJobs) -> ClaimedJobs:
        """Also for the ahead thread."""
        self._preparer.prepare_portion(self._model, jobs, self._sizer.size, self._stopping)
        return jobs

    def _run_portion(self, jobs: ClaimedJobs, items: Sequence[Item]) -> None:
        """Runs prepared items in batches, and settles the jobs that are done by then."""
        self._settle_done(jobs)
        ran = False
        for batch in form_batches(items, self._sizer.size):
            if self._stopping.is_set() or (ran and time.monotonic() >= self._leave_at):
                self._left_unfinished = True
                return
            if wanted := [item for item in batch if not item.job.is_done]:
                self._run_batch(wanted)
                ran = True
                self._settle_done(jobs)
                self._save_parts(wanted)
        if self._stopping.is_set() or time.monotonic() >= self._leave_at:
            self._left_unfinished = bool(jobs.pending)

    def _run_batch(self, items: Sequence[Item]) -> None:
        context, model = self._context, self._model
        task = items[0].job.claimed.task
        observer = _Observer(context.recorder, context.leases, self._sizer, model.name, task)
        run_batch(model.runner(task), items, observer)
        for item in items:
            # The largest part of an item, and its job may go on for long.
            item.prepared = None
        context.recorder.note_draining(model.name)

    def _settle_done(self, jobs: ClaimedJobs) -> None:
        self._claims.drop_canceled_and_lost(jobs.opened)
        done = [job for job in jobs.opened if job.is_done]
        if done:
            jobs.opened = [job for job in jobs.opened if not job.is_done]
            self._claims.settle_later([close_job(job, self._details) for job in done])

    def _save_parts(self, batch: Sequence[Item]) -> None:
        """Saves the finished items of batched jobs that go on after this batch."""
        parts: dict[str, dict[int, str]] = {}
        for item in batch:
            if item.is_done and item.job.claimed.batched and not item.job.is_done:
                parts.setdefault(item.job.claimed.id, {})[item.index] = part_text(item)
        for job_id, finished in parts.items():
            self._claims.save_parts_later(job_id, finished)


def _details(context: DrainContext, model: LoadedModel) -> dict[str, Any]:
    """What the documents of a run's jobs show in common."""
    source = model.context.entry.source
    # The model's device: on a GPU's node, a model whose runtime cannot use a GPU runs on the CPU.
    details: dict[str, Any] = {"node": context.node, "device": model.context.device.kind}
    return details | ({"revision": source.revision} if source and source.revision else {})


@dataclass(frozen=True, slots=True)
class _Observer(PassObserver):
    """Forwards the events of a forward pass to the recorder, the batch sizer and the metrics."""

    recorder: Recorder
    leases: Leases
    sizer: BatchSizer
    model: str
    task: str

    def progress(self, batch: Sequence[Item]) -> PassProgress:
        return PassProgress(batch, self.leases, lambda: self.entering(batch))

    def entering(self, batch: Sequence[Item]) -> None:
        members = ((item.job.claimed.id, item.job.claimed.fence, item.index) for item in batch)
        self.recorder.note_forward(self.model, members)

    def ran(self, items: int, seconds: float) -> None:
        self.sizer.ran(items, seconds)
        metrics.batch_ran(self.task, self.model, items, seconds)

    def out_of_memory(self, items: int) -> None:
        self.sizer.out_of_memory(items)
