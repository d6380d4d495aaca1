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
from collections.abc import Collection, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from backends.loader import LoadedModel
from modelmill.blobs import BlobError
from modelmill.errors import ErrorCode, MediaError, ModelmillError
from modelmill.settings import Settings
from modelmill.store import Claimed, Claims, Ended, JobStore, Released, Settlement
from worker import metrics
from worker.leases import Leases
from worker.progress import PassProgress
from worker.recorder import Recorder
from worker.sizing import BatchSizer
from worker.work import (
    FileAwayError,
    Item,
    Job,
    PassObserver,
    close_job,
    form_batches,
    item_json,
    log_end,
    open_job,
    preprocess,
    run_batch,
)

logger = logging.getLogger(__name__)

AHEAD_AFTER_S = 0.005
"""Batches that take less are not worth looking meanwhile for jobs that may have come since their claim."""
AHEAD_UP_TO_S = 5.0
"""Windows that take longer gain little from a claim ahead, and other nodes could run what it takes."""
GATHER_S, MAX_GATHER_S = 0.0005, 0.003
"""Pause between two claims for each job of the first, and the longest. See ``Drain._moderate``."""
INLINE_PREPARE_S = 0.0003
"""Items that take less to prepare are not worth another thread."""


@dataclass
class Window:
    """Jobs of one claim, opened and prepared."""

    jobs: list[Job] = field(default_factory=list)
    remaining: int = 0
    """Jobs of the model that the claim left in the queue."""
    lingers: bool = False
    """It is empty, and whoever submits next counts on this node."""

    @property
    def items(self) -> int:
        return sum(len(job.items) for job in self.jobs)

    @property
    def alone(self) -> bool:
        """Whether it holds a suspect, which shares its window with nobody."""
        return any(job.claimed.suspect for job in self.jobs)


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
        self.recorder.forward(self.model, tuple(members))

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
        store: JobStore,
        leases: Leases,
        recorder: Recorder,
        node: str,
        device: str,
        served: Collection[str] = (),
    ) -> None:
        self._settings = settings
        self._served = served
        self._store = store
        self._leases = leases
        self._recorder = recorder
        self._node = node
        self._device = device
        self._sizers: dict[str, BatchSizer] = {}
        self._details: dict[str, Any] = {"node": node, "device": device}
        self._open: dict[str, Claimed] = {}
        """Claimed and not settled, by id."""
        self._lock = threading.Lock()
        self._settled = 0
        self._model = ""
        self._idle_s = 0.0
        self._claimed_at = 0.0
        self._window_s: dict[str, float] = {}
        """How long the last window of a model took to run, where that was observed."""
        self._prepare_s: dict[str, float] = {}
        """How long an item of a model takes to prepare, in its thread."""
        self._stopping = threading.Event()
        self._remembered: dict[str, dict[str, int]] = {}
        self._ahead = ThreadPoolExecutor(1, "claim")
        self._behind = ThreadPoolExecutor(1, "settle")
        self._preparers = ThreadPoolExecutor(settings.preprocess_threads, "preprocess")

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
        settling: list[Future[None]] = []
        started, settled, self._model = time.monotonic(), self._settled, model.name
        self._idle_s = 0.0
        self._recorder.draining(model.name)
        self._stopping = stopping
        try:
            remaining = self._run(model, settling, load_s)
            for future in settling:
                future.result()
            self._give_back()
        finally:
            # A claim ahead may still be on its way, if an error cut in: nobody would run what it takes.
            self._ahead.submit(lambda: None).result()
            # After an unforeseen error nobody must go on beating for these: their leases run out, and
            # the delivery they cost keeps a job that causes such errors from coming back for ever.
            self._leases.drop(list(self._open))
            self._open.clear()
        self._recorder.idle()
        self._remember(model.name, self._settled - settled, time.monotonic() - started - self._idle_s)
        return remaining > 0

    def sizer(self, model: LoadedModel) -> BatchSizer:
        """The batch size of ``model`` on this device, with what was learned before."""
        if model.name not in self._sizers:
            cap = model.context.entry.max_batch or self._settings.max_batch
            known = self._store.recall_sizing(model.name, self._device)
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

    def _remember(self, model: str, jobs: int, seconds: float) -> None:
        sizer = self._sizers[model]
        learned = sizer.learned
        if learned != self._remembered[model]:
            self._remembered[model] = learned
            self._store.remember_sizing(model, self._device, learned)
        # One job alone says how long a bell takes, and nothing of what a queue would do.
        if jobs > 1:
            self._store.report_rate(model, jobs / max(seconds, 1e-3))

    def _run(self, model: LoadedModel, settling: list[Future[None]], load_s: float) -> int:
        deadline = time.monotonic() + self._settings.slice_s
        linger_s = self._settings.linger_s
        window = self._fetch(model, linger_s=linger_s)
        for job in window.jobs:
            job.load_s = min(load_s, job.claimed.queued_s)
        # What was claimed just now need not be filled up: nothing can have come since.
        fill_up = waits = model.context.entry.max_wait_ms is not None
        taken = 0
        while True:
            if not window.jobs:
                woken = self._linger(model.name, linger_s) if window.lingers else ""
                if not woken:
                    break
                if woken == "leave" or time.monotonic() >= deadline:
                    linger_s = 0.0
                self._moderate(taken)
                window = self._fetch(model, linger_s=linger_s)
                continue
            if fill_up:
                self._fill_up(model, window)
            if time.monotonic() >= deadline or self._stopping.is_set():
                self._run_window(model, window, settling)
                break
            taken = len(window.jobs)
            window = self._run_and_fetch_ahead(model, window, settling)
            fill_up = waits or bool(window.jobs)
            if not window.jobs and not self._stopping.is_set():
                # Jobs may have come while the last batch ran: look once more before leaving.
                self._moderate(taken)
                window = self._fetch(model, linger_s=linger_s)
        return window.remaining

    def _run_and_fetch_ahead(
        self, model: LoadedModel, window: Window, settling: list[Future[None]]
    ) -> Window:
        """Runs ``window``, and gives the next one, which was fetched meanwhile.

        If nothing remained in the queue, a batch that is over in a moment is not to be slowed down by it.
        """
        expected_s = self._window_s.get(model.name, AHEAD_AFTER_S)
        brief = expected_s < AHEAD_AFTER_S and not window.remaining
        alone = brief or expected_s > AHEAD_UP_TO_S
        fetching = None if alone else self._ahead.submit(self._fetch, model)
        started = time.monotonic()
        self._run_window(model, window, settling)
        self._window_s[model.name] = time.monotonic() - started
        return fetching.result() if fetching else Window()

    def _moderate(self, taken: int) -> None:
        """Lets jobs that come by the thousand a second gather for a moment, before they are claimed.

        Each claim has a cost of its own, here and in the store. Half a millisecond for each job of the
        last claim is over before the next comes at fewer than two thousand a second, and then nobody waits.
        """
        left_s = self._claimed_at + min(taken * GATHER_S, MAX_GATHER_S) - time.monotonic()
        if taken > 1 and left_s > 0:
            time.sleep(left_s)

    def _linger(self, model: str, linger_s: float) -> str:
        """Stays for a while with a model whose queue is empty: ``go`` on, ``leave``, or nothing has come.

        After ``leave`` there may be jobs all the same, that nobody else was called for.
        """
        started = time.monotonic()
        woken = ""
        # In short waits, since SIGTERM does not end one.
        while not woken and not self._stopping.is_set():
            left_s = started + linger_s - time.monotonic()
            if left_s <= 0:
                break
            woken = self._store.linger(self._node, max(0.001, min(left_s, 0.2)))
        self._idle_s += time.monotonic() - started
        if woken != "go" and self._store.stop_lingering(model, self._node):
            return ""
        return woken or "leave"

    def _fill_up(self, model: LoadedModel, window: Window) -> None:
        """Claims what came since, if the window fills no batch; waits only where the model says so."""
        size = self.sizer(model).size
        wait_until = time.monotonic() + (model.context.entry.max_wait_ms or 0) / 1000
        while (missing := size - window.items) > 0 and not window.alone and not self._stopping.is_set():
            more = self._fetch(model, missing)
            window.jobs += more.jobs
            window.remaining = more.remaining
            if not more.jobs:
                if time.monotonic() >= wait_until:
                    return
                time.sleep(min(0.005, max(0.0, wait_until - time.monotonic())))

    def fail_waiting(self, model: str, error: ModelmillError) -> None:
        """Ends the waiting jobs of a model that cannot be loaded, with the reason."""
        deadline, self._model = time.monotonic() + self._settings.slice_s, model
        while time.monotonic() < deadline:
            claims = self._claim(model, 256)
            if not claims.jobs:
                return
            jobs = [Job(claimed, error=error) for claimed in claims.jobs]
            self._settle([close_job(job, self._details) for job in jobs])

    def close(self) -> None:
        for pool in (self._ahead, self._behind, self._preparers):
            pool.shutdown(wait=False, cancel_futures=True)

    def _claim(self, model: str, count: int, linger_s: float = 0.0) -> Claims:
        fence = uuid.uuid4().hex
        self._claimed_at = time.monotonic()
        self._recorder.claiming(fence)
        claims = self._claim_until_answered(model, fence, count, linger_s)
        self._leases.hold(claims.jobs)
        with self._lock:
            self._open |= {job.id: job for job in claims.jobs}
        if not claims.jobs:
            self._recorder.settled(fence)
        return claims

    def _claim_until_answered(self, model: str, fence: str, count: int, linger_s: float) -> Claims:
        """Claims. A lost reply may have leased jobs to ``fence``: only the same claim again finds them."""
        wait_s = 0.1
        while True:
            try:
                return self._store.claim(
                    model, fence, self._node, count, self._settings.claim_bytes, linger_s, self._served
                )
            except (RedisConnectionError, RedisTimeoutError) as error:
                if self._stopping.is_set():
                    raise
                logger.warning("claiming jobs of %s failed, trying again: %s", model, error)
                self._stopping.wait(wait_s)
                wait_s = min(wait_s * 2, 2.0)

    def _fetch(self, model: LoadedModel, count: int | None = None, linger_s: float = 0.0) -> Window:
        """Claims a batchful of jobs and prepares their items."""
        try:
            claims = self._claim(model.name, count or self.sizer(model).size, linger_s)
            bodies = self._store.inputs(claims.jobs)
            parts = [self._store.parts(job.id) if job.batched else {} for job in claims.jobs]
        except (RedisError, BlobError) as error:
            # What was claimed and not read is given back at the end, or comes back when its lease runs out.
            logger.warning("claiming jobs of %s failed: %s", model.name, error)
            return Window()
        keys = model.context.entry.config_keys
        jobs = [open_job(*job, keys, self._read_file) for job in zip(claims.jobs, bodies, parts, strict=True)]
        self._prepare_all(model, [item for job in jobs for item in job.items if not item.is_done])
        return Window(jobs, claims.remaining, claims.lingers)

    def _read_file(self, file_id: str) -> bytes:
        """The content of a file that a job names. Called by the threads that prepare."""
        try:
            content = self._store.read_file(file_id)
        except (RedisError, BlobError) as error:
            raise FileAwayError(str(error)) from error
        if content is None:
            raise MediaError(ErrorCode.MEDIA_NOT_FOUND, "The file is not there any more: upload it again.")
        return content

    def _prepare_all(self, model: LoadedModel, items: Sequence[Item]) -> None:
        if len(items) == 1 or self._prepare_s.get(model.name, 1.0) < INLINE_PREPARE_S:
            for item in items:
                self._prepare(model, item)
        else:
            list(self._preparers.map(lambda item: self._prepare(model, item), items))
        if items:
            # A thread that waited for the interpreter took longer than its item did: the least says most.
            self._prepare_s[model.name] = min(item.job.preprocess_s / len(item.job.items) for item in items)

    def _prepare(self, model: LoadedModel, item: Item) -> None:
        try:
            runner = model.runner(item.job.claimed.task)
        except ModelmillError as error:
            item.error = error
            return
        preprocess(runner, item)

    def _run_window(self, model: LoadedModel, window: Window, settling: list[Future[None]]) -> None:
        unsettled = list(window.jobs)
        source = model.context.entry.source
        # A model whose runtime cannot use a GPU runs on the CPU, also on a GPU's node.
        details = self._details | {"device": model.context.device.kind}
        details |= {"revision": source.revision} if source and source.revision else {}

        def settle_done() -> None:
            self._drop_unwanted(unsettled)
            done = [job for job in unsettled if job.is_done]
            unsettled[:] = [job for job in unsettled if not job.is_done]
            if done:
                outcomes = [close_job(job, details) for job in done]
                settling.append(self._behind.submit(self._settle, outcomes))

        settle_done()
        sizer = self.sizer(model)
        items = [item for job in unsettled for item in job.items]
        for batch in form_batches(items, sizer.size):
            if self._stopping.is_set():
                return
            if wanted := [item for item in batch if not item.job.is_done]:
                task = wanted[0].job.claimed.task
                observer = _Observer(self._recorder, self._leases, sizer, model.name, task)
                run_batch(model.runner(task), wanted, observer)
                self._recorder.draining(model.name)
                settle_done()
                self._save_parts(wanted, settling)

    def _save_parts(self, batch: Sequence[Item], settling: list[Future[None]]) -> None:
        """Keeps the finished items of batched jobs that go on after this batch."""
        parts: dict[str, dict[int, str]] = {}
        for item in batch:
            if item.is_done and item.job.claimed.batched and not item.job.is_done:
                parts.setdefault(item.job.claimed.id, {})[item.index] = item_json(item)
        for job_id, finished in parts.items():
            settling.append(self._behind.submit(self._save, job_id, finished))

    def _save(self, job_id: str, finished: dict[int, str]) -> None:
        try:
            self._store.save_parts(job_id, finished)
        except RedisError as error:
            # Only a retry would have gained from it.
            logger.warning("job %s: its finished items were not kept: %s", job_id, error)

    def _drop_unwanted(self, jobs: list[Job]) -> None:
        """Marks jobs that were canceled, and forgets those that belong to somebody else by now."""
        for job in list(jobs):
            if self._leases.is_lost(job.claimed.id):
                jobs.remove(job)
                self._forget([job.claimed.id])
            elif self._leases.is_canceled(job.claimed.id):
                job.canceled = True

    def _forget(self, job_ids: Iterable[str]) -> None:
        with self._lock:
            gone = [job for job_id in job_ids if (job := self._open.pop(job_id, None)) is not None]
            held = {job.fence for job in self._open.values()}
        self._leases.drop([job.id for job in gone])
        for fence in {job.fence for job in gone} - held:
            self._recorder.settled(fence)

    def _settle(self, outcomes: Sequence[Ended | Released]) -> None:
        """Writes outcomes. While the store is away they are held: the fence decides when it is back."""
        wait_s = 0.1
        while True:
            try:
                verdicts = self._store.settle(outcomes)
                break
            except (RedisError, BlobError) as error:
                logger.warning("settling %d jobs failed, trying again: %s", len(outcomes), error)
                time.sleep(wait_s)
                wait_s = min(wait_s * 2, 2.0)
        for outcome, verdict in zip(outcomes, verdicts, strict=True):
            claimed = self._open.get(outcome.id)
            if isinstance(outcome, Ended) and claimed is not None:
                self._settled += verdict is Settlement.OK
                log_end(outcome, claimed, self._model, verdict)
                metrics.job_ended(claimed.task, self._model, outcome.status.value, claimed.queued_s)
        self._forget([outcome.id for outcome in outcomes])

    def _give_back(self) -> None:
        """Returns what is claimed and not settled to the queue."""
        if self._open:
            logger.info("giving back %d jobs", len(self._open))
            self._settle([Released(job.id, job.fence) for job in self._open.values()])
