"""Windows: the jobs of one claim, opened into items and prepared a portion at a time.

A portion is a few batches. However many items the jobs of a claim have, no more of them than that lie decoded
in memory beside those in ``forward``.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event

from redis.exceptions import RedisError

from modelmill.blobs import BlobError
from modelmill.errors import ErrorCode, MediaError, ModelmillError
from modelmill.store import OPENING, Claimed, WorkerStore
from modelmill_backends.loader import LoadedModel
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.batches import FileAwayError, Item, Job, open_job, preprocess

PORTION_BATCHES = 4
"""Batches to a portion: items of like cost share a batch, so there should be some to choose from."""
INLINE_PREPARE_S = 0.0003
"""Items that take less to prepare are not worth another thread."""
ALIVE_EVERY_S = 1.0
"""How often the parent is told which items are not prepared yet."""


@dataclass
class ClaimedJobs:
    """Jobs of one claim."""

    claimed: list[Claimed] = field(default_factory=list)
    """Not opened yet."""
    jobs: list[Job] = field(default_factory=list)
    """Opened, and not settled."""
    pending: list[Item] = field(default_factory=list)
    """Items to be prepared."""
    ready: list[Item] = field(default_factory=list)
    """The portion that is prepared."""
    remaining: int = 0
    """Jobs of the model that the claim left in the queue."""
    lingers: bool = False
    """It is empty, and whoever submits next counts on this node."""

    @property
    def is_empty(self) -> bool:
        return not self.claimed and not self.jobs

    @property
    def alone(self) -> bool:
        """Whether it holds a suspect, beside which nothing else is prepared or run."""
        return any(claimed.suspect for claimed in (*self.claimed, *(job.claimed for job in self.jobs)))

    def add(self, more: ClaimedJobs) -> None:
        """Takes in what was claimed later."""
        self.jobs += more.jobs
        self.pending += more.pending
        self.ready += more.ready
        self.remaining = more.remaining


class Preparer:
    """Opens and prepares windows. Tells the parent which items are in hand: one may be this process's end."""

    def __init__(self, store: WorkerStore, recorder: Recorder, threads: int) -> None:
        self._store = store
        self._recorder = recorder
        self._pool = ThreadPoolExecutor(threads, "preprocess")
        self._item_s: dict[str, float] = {}
        """How long an item of a model takes to prepare, in its thread."""

    def open(self, model: LoadedModel, window: ClaimedJobs) -> None:
        """Reads the requests of what was claimed. To be followed by ``prepare``.

        Raises:
            RedisError, BlobError: they cannot be read now.
        """
        claimed, window.claimed = window.claimed, []
        self._recorder.preparing((job.id, job.fence, OPENING if job.batched else 0) for job in claimed)
        try:
            bodies = self._store.inputs(claimed)
            parts = [self._store.parts(job.id) if job.batched else {} for job in claimed]
            keys = model.context.entry.config_keys
            opened = [
                open_job(*job, keys, self._read_file) for job in zip(claimed, bodies, parts, strict=True)
            ]
        except Exception:
            # Or the parent would take a child that is idle by then for one that hangs here.
            self._recorder.prepared()
            raise
        window.jobs += opened
        window.pending += [item for job in opened for item in job.items if not item.is_done]

    def prepare(self, model: LoadedModel, window: ClaimedJobs, batch: int, stopping: Event) -> None:
        """Prepares the next portion. Once ``stopping`` is set, items are left as they are.

        Args:
            model: Whose runners prepare.
            window: Opened.
            batch: Items to a batch.
            stopping: Somebody waits for this process to end.
        """
        count = 1 if window.alone else batch * PORTION_BATCHES
        portion, window.pending = window.pending[:count], window.pending[count:]
        # Those of jobs that nobody wants any more, too, stay as they are.
        wanted = [item for item in portion if not item.job.is_done]
        self._recorder.preparing(_names(wanted))
        try:
            self._prepare_all(model, wanted, stopping)
        finally:
            self._recorder.prepared()
        window.ready += [item for item in wanted if item.prepared is not None]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _prepare_all(self, model: LoadedModel, items: Sequence[Item], stopping: Event) -> None:
        left, told_at = set(items), time.monotonic()
        took_s: list[float] = []

        def prepare(item: Item) -> Item:
            if not stopping.is_set():
                started = time.monotonic()
                _prepare(model, item)
                took_s.append(time.monotonic() - started)
            return item

        inline = len(items) == 1 or self._item_s.get(model.name, 1.0) < INLINE_PREPARE_S
        for item in map(prepare, items) if inline else self._pool.map(prepare, items):
            left.discard(item)
            if left and time.monotonic() - told_at >= ALIVE_EVERY_S:
                told_at = time.monotonic()
                self._recorder.preparing(_names(left))
        if took_s:
            # A thread that waited for the interpreter took longer than its item did: the least says most.
            self._item_s[model.name] = min(took_s)

    def _read_file(self, file_id: str) -> bytes:
        """The content of a file that a job names. Called by the threads that prepare."""
        try:
            content = self._store.read_file(file_id)
        except (RedisError, BlobError) as error:
            raise FileAwayError(str(error)) from error
        if content is None:
            raise MediaError(ErrorCode.MEDIA_NOT_FOUND, "The file is not there any more: upload it again.")
        return content


def _prepare(model: LoadedModel, item: Item) -> None:
    try:
        runner = model.runner(item.job.claimed.task)
    except ModelmillError as error:
        item.error = error
        return
    preprocess(runner, item)


def _names(items: Iterable[Item]) -> list[tuple[str, str, int]]:
    return [(item.job.claimed.id, item.job.claimed.fence, item.index) for item in items]
