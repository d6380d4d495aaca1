"""A drain: one bell's worth of work on one model.

Claim a window of jobs and prepare it, run it in batches, settle what is done, and go on until the
queue is empty or the time slice ends. While one portion of a window is in ``forward``, the next is
prepared in the background, or another window claimed, and results are written behind.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from modelmill.blobs import BlobError
from modelmill.errors import ModelmillError
from modelmill.settings import Settings
from modelmill.store import Wake, WorkerStore
from modelmill_backends.loader import LoadedModel
from modelmill_worker import metrics
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.batches import (
    Item,
    Job,
    PassObserver,
    close_job,
    form_batches,
    item_json,
    run_batch,
)
from modelmill_worker.drain.claims import Holdings
from modelmill_worker.drain.leases import Leases
from modelmill_worker.drain.preparation import ClaimedJobs, Preparer
from modelmill_worker.drain.progress import PassProgress
from modelmill_worker.drain.sizing import BatchSizer

logger = logging.getLogger(__name__)

AHEAD_AFTER_S = 0.005
"""Batches that take less are not worth looking meanwhile for jobs that may have come since their claim."""
AHEAD_UP_TO_S = 5.0
"""Windows that take longer gain little from a claim ahead, and other nodes could run what it takes."""
GATHER_S, MAX_GATHER_S = 0.0005, 0.003
"""Pause between two claims for each job of the first, and the longest. See ``Drain._moderate``."""


@dataclass(frozen=True, slots=True)
class _Observer(PassObserver):
    """Tells of forward passes whoever learns from them."""

    recorder: Recorder
    leases: Leases
    sizer: BatchSizer
    model: str
    task: str

    def progress(self, batch: Sequence[Item]) -> PassProgress:
        return PassProgress(batch, self.leases, lambda: self.entering(batch))

    def entering(self, batch: Sequence[Item]) -> None:
        members = ((item.job.claimed.id, item.job.claimed.fence, item.index) for item in batch)
        self.recorder.forward(self.model, members)

    def ran(self, items: int, seconds: float) -> None:
        self.sizer.ran(items, seconds)
        metrics.batch_ran(self.task, self.model, items, seconds)

    def out_of_memory(self, items: int) -> None:
        self.sizer.out_of_memory(items)


class Drain:
    """Works on one model at a time; one object serves a process's whole life."""

    def __init__(
        self,
        settings: Settings,
        store: WorkerStore,
        leases: Leases,
        recorder: Recorder,
        node: str,
        device: str,
        served: Collection[str] = (),
    ) -> None:
        self._settings = settings
        self._store = store
        self._leases = leases
        self._recorder = recorder
        self._node = node
        self._holdings = Holdings(settings, store, leases, recorder, node, served)
        self._preparer = Preparer(store, recorder, settings.preprocess_threads)
        self._sizers: dict[str, BatchSizer] = {}
        self._details: dict[str, Any] = {"node": node, "device": device}
        self._idle_s = 0.0
        self._leave_at = 0.0
        self._broke_off = False
        """Claimed jobs are left that nobody has begun."""
        self._window_s: dict[str, float] = {}
        """How long the last portion of a model took to run, where that was observed."""
        self._stopping = threading.Event()
        self._remembered: dict[str, dict[str, int]] = {}
        self._ahead = ThreadPoolExecutor(1, "claim")

    def run(self, model: LoadedModel, stopping: threading.Event, load_s: float = 0.0) -> bool:
        """Drains ``model``'s queue for one slice. Returns whether jobs may remain in it.

        When ``stopping`` is set, the batch in hand is finished and everything else given back.

        Args:
            model: The model.
            stopping: To be looked at between batches.
            load_s: How long the model was just being loaded, if it was.

        Raises:
            DeviceLostError: this process can do no more; its parent takes care of what it held.
        """
        started, settled = time.monotonic(), self._holdings.settled
        self._stopping, self._idle_s = stopping, 0.0
        self._leave_at, self._broke_off = started + self._settings.longest_drain_s, False
        self._holdings.begin(model.name, stopping)
        self._recorder.draining(model.name)
        try:
            remaining = self._run(model, load_s)
            self._holdings.finish()
        finally:
            # A claim ahead may still be on its way, if an error cut in: nobody would run what it takes.
            self._ahead.submit(lambda: None).result()
            self._holdings.abandon()
        self._recorder.idle()
        jobs = self._holdings.settled - settled
        self._remember(model, jobs, time.monotonic() - started - self._idle_s)
        return remaining > 0 or self._broke_off

    def sizer(self, model: LoadedModel) -> BatchSizer:
        """The batch size of ``model`` on this device, with what was learned before."""
        if model.name not in self._sizers:
            cap = model.context.entry.max_batch or self._settings.max_batch
            known = self._store.recall_sizing(model.name, model.context.device.kind)
            self._remembered[model.name] = known
            self._sizers[model.name] = BatchSizer(
                min(cap, known.get("cap", cap)), known.get("best", 0), lowered="cap" in known
            )
        return self._sizers[model.name]

    def sizes(self) -> dict[str, dict[str, Any]]:
        """What is known of batch sizes, by model, as the node announces it."""
        return {
            name: {
                "batch_size": sizer.best,
                "max_batch": sizer.cap,
                "items_per_s": {str(size): round(rate, 1) for size, rate in dict(sizer.rates).items()},
            }
            for name, sizer in dict(self._sizers).items()
        }

    def _remember(self, loaded: LoadedModel, jobs: int, seconds: float) -> None:
        model = loaded.name
        learned = self._sizers[model].learned
        try:
            if learned != self._remembered[model]:
                self._store.remember_sizing(model, loaded.context.device.kind, learned)
                self._remembered[model] = learned
            # One job alone says how long a bell takes, and nothing of what a queue would do.
            if jobs > 1:
                self._store.report_rate(model, jobs / max(seconds, 1e-3))
        except RedisError as error:
            # A server that is full takes what scripts settle, and not this.
            logger.warning("what was learned of model %s was not kept: %s", model, error)

    def _run(self, model: LoadedModel, load_s: float) -> int:
        deadline = time.monotonic() + self._settings.slice_s
        linger_s = self._settings.linger_s
        window = self._fetch(model, linger_s=linger_s)
        for job in window.jobs:
            job.load_s = min(load_s, job.claimed.queued_s)
        # What was claimed just now need not be filled up: nothing can have come since.
        fill_up = waits = model.context.entry.max_wait_ms is not None
        taken = 0
        while not self._broke_off:
            if window.is_empty:
                woken = self._linger(model.name, linger_s) if window.lingers else None
                if woken is None:
                    break
                if woken is Wake.LEAVE or time.monotonic() >= deadline:
                    linger_s = 0.0
                self._moderate(taken)
                window = self._fetch(model, linger_s=linger_s)
                continue
            self._open(model, window)
            if fill_up and not window.pending:
                self._fill_up(model, window)
            if not window.pending and (time.monotonic() >= deadline or self._stopping.is_set()):
                self._run_portion(model, window, window.ready)
                break
            taken = len(window.jobs)
            window = self._run_and_look_ahead(model, window, deadline)
            fill_up = waits or bool(window.jobs)
            if window.is_empty and not self._broke_off and not self._stopping.is_set():
                # Jobs may have come while the last batch ran: look once more before leaving.
                self._moderate(taken)
                window = self._fetch(model, linger_s=linger_s)
        return window.remaining

    def _run_and_look_ahead(self, model: LoadedModel, window: ClaimedJobs, deadline: float) -> ClaimedJobs:
        """Runs a portion of ``window``, and gives what comes next: the same window, or another one.

        That is prepared meanwhile, except beside a suspect: should the process die, it must be known of what.
        """
        portion, window.ready = window.ready, []
        goes_on = bool(window.pending)
        started = time.monotonic()
        if window.alone or not (goes_on or (started < deadline and self._is_worth_a_claim(model, window))):
            self._run_portion(model, window, portion)
            if goes_on and not self._broke_off:
                self._prepare(model, window)
            following = window if goes_on else ClaimedJobs()
        else:
            if goes_on:
                ahead = self._ahead.submit(self._prepare, model, window)
            else:
                ahead = self._ahead.submit(self._fetch, model, ahead=True)
            self._run_portion(model, window, portion)
            following = ahead.result()
        self._window_s[model.name] = time.monotonic() - started
        return following

    def _is_worth_a_claim(self, model: LoadedModel, window: ClaimedJobs) -> bool:
        """If nothing remained in the queue, a batch that is over in a moment is not to be slowed down."""
        expected_s = self._window_s.get(model.name, AHEAD_AFTER_S)
        brief = expected_s < AHEAD_AFTER_S and not window.remaining
        return not brief and expected_s <= AHEAD_UP_TO_S

    def _moderate(self, taken: int) -> None:
        """Lets jobs that come by the thousand a second gather for a moment, before they are claimed.

        Each claim has a cost of its own, here and in the store. Half a millisecond for each job of the
        last claim is over before the next comes at fewer than two thousand a second, and then nobody waits.
        """
        left_s = self._holdings.claimed_at + min(taken * GATHER_S, MAX_GATHER_S) - time.monotonic()
        if taken > 1 and left_s > 0:
            time.sleep(left_s)

    def _linger(self, model: str, linger_s: float) -> Wake | None:
        """Stays for a while with a model whose queue is empty; None if no word came.

        After ``LEAVE`` there may be jobs all the same, for which no other node was called.
        """
        started = time.monotonic()
        woken: Wake | None = None
        # In short waits, since SIGTERM does not end one.
        while woken is None and not self._stopping.is_set():
            left_s = started + linger_s - time.monotonic()
            if left_s <= 0:
                break
            woken = self._store.linger(self._node, max(0.001, min(left_s, 0.2)))
        self._idle_s += time.monotonic() - started
        if woken is not Wake.GO and self._store.stop_lingering(model, self._node):
            return None
        return woken or Wake.LEAVE

    def _fill_up(self, model: LoadedModel, window: ClaimedJobs) -> None:
        """Claims what came since, if the window fills no batch; waits only where the model says so."""
        size = self.sizer(model).size
        wait_until = time.monotonic() + (model.context.entry.max_wait_ms or 0) / 1000
        while (missing := size - len(window.ready)) > 0 and not window.alone and not self._stopping.is_set():
            more = self._fetch(model, missing)
            window.add(more)
            if more.is_empty:
                if time.monotonic() >= wait_until:
                    return
                time.sleep(min(0.005, max(0.0, wait_until - time.monotonic())))

    def fail_waiting(self, model: str, error: ModelmillError) -> None:
        """Ends the waiting jobs of a model that cannot be loaded, with the reason."""
        deadline = time.monotonic() + self._settings.slice_s
        self._holdings.begin(model, self._stopping)
        while time.monotonic() < deadline:
            claims = self._holdings.claim(256)
            if not claims.jobs:
                return
            jobs = [Job(claimed, error=error) for claimed in claims.jobs]
            self._holdings.settle([close_job(job, self._details) for job in jobs])

    def close(self) -> None:
        self._ahead.shutdown(wait=False, cancel_futures=True)
        self._holdings.close()
        self._preparer.close()

    def _fetch(
        self, model: LoadedModel, count: int | None = None, linger_s: float = 0.0, *, ahead: bool = False
    ) -> ClaimedJobs:
        """Claims a batchful of jobs and prepares their first items. A suspect is not touched ``ahead``."""
        try:
            claims = self._holdings.claim(count or self.sizer(model).size, linger_s)
        except RedisError as error:
            logger.warning("claiming jobs of %s failed: %s", model.name, error)
            return ClaimedJobs()
        window = ClaimedJobs(list(claims.jobs), remaining=claims.remaining, lingers=claims.lingers)
        if not (ahead and window.alone):
            self._open(model, window)
        return window

    def _open(self, model: LoadedModel, window: ClaimedJobs) -> None:
        """Opens what was claimed, if it is not yet, and prepares the first portion."""
        if not window.claimed:
            return
        try:
            self._preparer.open(model, window)
        except (RedisError, BlobError) as error:
            # What was not read is given back at the end, and the reaper's to ring for: not at once again.
            logger.warning("reading jobs of %s failed: %s", model.name, error)
            window.remaining = 0
            return
        self._prepare(model, window)

    def _prepare(self, model: LoadedModel, window: ClaimedJobs) -> ClaimedJobs:
        self._preparer.prepare(model, window, self.sizer(model).size, self._stopping)
        return window

    def _run_portion(self, model: LoadedModel, window: ClaimedJobs, items: Sequence[Item]) -> None:
        """Runs prepared items, and settles the jobs that are done by then."""
        self._settle_done(model, window)
        sizer = self.sizer(model)
        ran = False
        for batch in form_batches(items, sizer.size):
            if self._stopping.is_set() or (ran and time.monotonic() >= self._leave_at):
                self._broke_off = True
                return
            if wanted := [item for item in batch if not item.job.is_done]:
                task = wanted[0].job.claimed.task
                observer = _Observer(self._recorder, self._leases, sizer, model.name, task)
                run_batch(model.runner(task), wanted, observer)
                ran = True
                for item in wanted:
                    item.prepared = None  # the largest part of it, and its job may go on for long
                self._recorder.draining(model.name)
                self._settle_done(model, window)
                self._save_parts(wanted)
        if self._stopping.is_set() or time.monotonic() >= self._leave_at:
            self._broke_off = bool(window.pending)

    def _settle_done(self, model: LoadedModel, window: ClaimedJobs) -> None:
        self._holdings.drop_unwanted(window.jobs)
        done = [job for job in window.jobs if job.is_done]
        if done:
            window.jobs = [job for job in window.jobs if not job.is_done]
            source = model.context.entry.source
            # A model whose runtime cannot use a GPU runs on the CPU, also on a GPU's node.
            details = self._details | {"device": model.context.device.kind}
            details |= {"revision": source.revision} if source and source.revision else {}
            self._holdings.settle_behind([close_job(job, details) for job in done])

    def _save_parts(self, batch: Sequence[Item]) -> None:
        """Keeps the finished items of batched jobs that go on after this batch."""
        parts: dict[str, dict[int, str]] = {}
        for item in batch:
            if item.is_done and item.job.claimed.batched and not item.job.is_done:
                parts.setdefault(item.job.claimed.id, {})[item.index] = item_json(item)
        for job_id, finished in parts.items():
            self._holdings.save_behind(job_id, finished)
