"""A drain: one bell's worth of work on one model.

Claim a window of jobs and prepare it, run it in batches, settle what is done, and go on until the
queue is empty or the time slice ends. While one window is in ``forward``, the next is claimed and
prepared in the background, and results are written behind.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import RedisError

from backends.loader import LoadedModel
from modelmill.errors import ModelmillError
from modelmill.settings import Settings
from modelmill.store import Claimed, Claims, Ended, JobStore, Released, Settlement
from worker.leases import Leases
from worker.work import Item, Job, close_job, form_batches, open_job, preprocess, run_batch

logger = logging.getLogger(__name__)


@dataclass
class Window:
    """Jobs of one claim, opened and prepared."""

    jobs: list[Job] = field(default_factory=list)
    remaining: int = 0
    """Jobs of the model that the claim left in the queue."""


class Drain:
    """Works on one model at a time; one object serves a process's whole life."""

    def __init__(self, settings: Settings, store: JobStore, leases: Leases, node: str, device: str) -> None:
        self._settings = settings
        self._store = store
        self._leases = leases
        self._node = node
        self._details: dict[str, Any] = {"node": node, "device": device}
        self._open: dict[str, Claimed] = {}
        """Claimed and not settled. Single operations on it are atomic; no thread iterates but the drain's."""
        self._ahead = ThreadPoolExecutor(1, "claim")
        self._behind = ThreadPoolExecutor(1, "settle")
        self._preparers = ThreadPoolExecutor(settings.preprocess_threads, "preprocess")

    def run(self, model: LoadedModel, stopping: threading.Event) -> bool:
        """Drains ``model``'s queue for one slice. Returns whether jobs may remain in it.

        When ``stopping`` is set, the batch in hand is finished and everything else given back.
        """
        settling: list[Future[None]] = []
        try:
            remaining = self._run(model, stopping, settling)
            for future in settling:
                future.result()
            self._give_back()
        finally:
            # After an unforeseen error nobody must go on beating for these: their leases run out, and
            # the delivery they cost keeps a job that causes such errors from coming back for ever.
            self._leases.drop(self._open)
            self._open.clear()
        return remaining > 0

    def _run(self, model: LoadedModel, stopping: threading.Event, settling: list[Future[None]]) -> int:
        deadline = time.monotonic() + self._settings.slice_s
        window = self._fetch(model)
        while window.jobs:
            ahead = None
            if time.monotonic() < deadline and not stopping.is_set():
                ahead = self._ahead.submit(self._fetch, model)
            self._run_window(model, window, stopping, settling)
            if ahead is None:
                break
            window = ahead.result()
            if not window.jobs and not stopping.is_set():
                # Jobs may have come while the last batch ran: look once more before leaving.
                window = self._fetch(model)
        return window.remaining

    def fail_waiting(self, model: str, error: ModelmillError) -> None:
        """Ends the waiting jobs of a model that cannot be loaded, with the reason."""
        deadline = time.monotonic() + self._settings.slice_s
        while time.monotonic() < deadline:
            claims = self._claim(model, 256)
            if not claims.jobs:
                return
            jobs = [Job(claimed, error=error) for claimed in claims.jobs]
            self._settle([close_job(job, self._details) for job in jobs])

    def close(self) -> None:
        for pool in (self._ahead, self._behind, self._preparers):
            pool.shutdown(wait=False, cancel_futures=True)

    def _max_batch(self, model: LoadedModel) -> int:
        return model.context.entry.max_batch or self._settings.max_batch

    def _claim(self, model: str, count: int) -> Claims:
        claims = self._store.claim(model, uuid.uuid4().hex, self._node, count, self._settings.claim_bytes)
        self._leases.hold(claims.jobs)
        self._open |= {job.id: job for job in claims.jobs}
        return claims

    def _fetch(self, model: LoadedModel) -> Window:
        """Claims a batchful of jobs and prepares their items."""
        try:
            claims = self._claim(model.name, self._max_batch(model))
            bodies = self._store.inputs(claims.jobs)
        except RedisError as error:
            # What was claimed and not read comes back when its lease runs out.
            logger.warning("claiming jobs of %s failed: %s", model.name, error)
            return Window()
        jobs = [open_job(claimed, body) for claimed, body in zip(claims.jobs, bodies, strict=True)]
        items = [item for job in jobs for item in job.items]
        if len(items) == 1:
            self._prepare(model, items[0])
        else:
            list(self._preparers.map(lambda item: self._prepare(model, item), items))
        return Window(jobs, claims.remaining)

    def _prepare(self, model: LoadedModel, item: Item) -> None:
        try:
            runner = model.runner(item.job.claimed.task)
        except ModelmillError as error:
            item.error = error
            return
        preprocess(runner, item)

    def _run_window(
        self, model: LoadedModel, window: Window, stopping: threading.Event, settling: list[Future[None]]
    ) -> None:
        unsettled = list(window.jobs)

        def settle_done() -> None:
            self._drop_unwanted(unsettled)
            done = [job for job in unsettled if job.is_done]
            unsettled[:] = [job for job in unsettled if not job.is_done]
            if done:
                outcomes = [close_job(job, self._details) for job in done]
                settling.append(self._behind.submit(self._settle, outcomes))

        settle_done()
        items = [item for job in unsettled for item in job.items]
        for batch in form_batches(items, self._max_batch(model)):
            if stopping.is_set():
                return
            if wanted := [item for item in batch if not item.job.is_done]:
                run_batch(model.runner(wanted[0].job.claimed.task), wanted)
                settle_done()

    def _drop_unwanted(self, jobs: list[Job]) -> None:
        """Marks jobs that were canceled, and forgets those that belong to somebody else by now."""
        for job in list(jobs):
            if self._leases.is_lost(job.claimed.id):
                jobs.remove(job)
                self._forget([job.claimed.id])
            elif self._leases.is_canceled(job.claimed.id):
                job.canceled = True

    def _forget(self, job_ids: Iterable[str]) -> None:
        for job_id in job_ids:
            self._open.pop(job_id, None)
            self._leases.drop([job_id])

    def _settle(self, outcomes: Sequence[Ended | Released]) -> None:
        """Writes outcomes. While the store is away they are held: the fence decides when it is back."""
        wait_s = 0.1
        while True:
            try:
                verdicts = self._store.settle(outcomes)
                break
            except RedisError as error:
                logger.warning("settling %d jobs failed, trying again: %s", len(outcomes), error)
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, 2.0)
        self._forget([outcome.id for outcome in outcomes])
        for outcome, verdict in zip(outcomes, verdicts, strict=True):
            status = outcome.status.value if isinstance(outcome, Ended) else "released"
            if verdict is Settlement.OK:
                logger.info("job %s %s", outcome.id, status)
            else:
                logger.warning("job %s: settling it as %s was %s", outcome.id, status, verdict.value)

    def _give_back(self) -> None:
        """Returns what is claimed and not settled to the queue."""
        if self._open:
            logger.info("giving back %d jobs", len(self._open))
            self._settle([Released(job.id, job.fence) for job in self._open.values()])
