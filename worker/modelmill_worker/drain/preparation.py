"""Opens claimed jobs into items and prepares them, one portion at a time.

A portion is a few batches. Memory holds the decoded items of at most two portions, one in ``forward`` and one
prepared, no matter how many items the jobs of a claim have.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from threading import Event

from redis.exceptions import RedisError

from modelmill.blobs import BlobError
from modelmill.errors import ErrorCode, MediaError, ModelmillError
from modelmill.settings import Settings
from modelmill.store import OPENING, Claimed, WorkerStore
from modelmill_backends.loader import LoadedModel
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.batches import preprocess
from modelmill_worker.drain.jobs import FileUnavailableError, Item, Job, open_job

logger = logging.getLogger(__name__)

PORTION_BATCHES = 4
"""Batches in a portion. Items of like cost share a batch, so a portion offers some to choose from."""
INLINE_PREPARE_S = 0.0003
"""If an item takes less than this to prepare, the calling thread prepares it: another thread costs more."""
MAX_READ_FAILURES = 2
"""After so many requests that the blob store does not give, those beside them are not tried."""
ALIVE_EVERY_S = 1.0
"""How often the child state names the items that are not prepared yet. It shows that preparation goes on."""


@dataclass
class ClaimedJobs:
    """The jobs of one claim, on their way through this process.

    The drain thread owns the object. While the ahead thread prepares the next portion it owns ``pending`` and
    ``ready``, and the drain thread changes ``opened`` only.
    """

    unopened: list[Claimed] = field(default_factory=list)
    opened: list[Job] = field(default_factory=list)
    """Opened, and not settled yet."""
    pending: list[Item] = field(default_factory=list)
    """Items that are not prepared yet."""
    ready: list[Item] = field(default_factory=list)
    """The portion that is prepared."""
    remaining: int = 0
    """Jobs of the model that the claim left in the queue."""
    lingers: bool = False
    """The queue was empty, and the next submit wakes this node instead of ringing a bell."""

    @property
    def is_empty(self) -> bool:
        return not self.unopened and not self.opened

    @property
    def has_suspect(self) -> bool:
        """Whether one of the jobs is a suspect. Nothing else is prepared or run beside it."""
        return any(claimed.suspect for claimed in (*self.unopened, *(job.claimed for job in self.opened)))

    def add(self, more: ClaimedJobs) -> None:
        """Adds the jobs of a later claim."""
        self.opened += more.opened
        self.pending += more.pending
        self.ready += more.ready
        self.remaining = more.remaining


class Preparer:
    """Opens jobs and prepares items. One object serves a process's whole life.

    It names the items in progress in the child state, because one of them may end this process. At any time
    one thread uses it: the drain thread, or the ahead thread.
    """

    def __init__(self, settings: Settings, store: WorkerStore, recorder: Recorder) -> None:
        self._settings = settings
        self._store = store
        self._recorder = recorder
        self._pool = ThreadPoolExecutor(settings.preprocess_threads, "preprocess")
        self._item_s: dict[str, float] = {}
        """How long an item takes to prepare in its thread, by model."""

    def open(self, model: LoadedModel, jobs: ClaimedJobs) -> None:
        """Reads the requests of jobs that were just claimed. ``prepare_portion`` must follow.

        A request that the blob store cannot give now is left out. Its job is released at the end of the run.

        Raises:
            RedisError: the requests cannot be read now.
        """
        claimed, jobs.unopened = jobs.unopened, []
        self._recorder.note_preparing((job.id, job.fence, OPENING if job.batched else 0) for job in claimed)
        try:
            readable = self._read_requests(claimed)
            opened = [
                open_job(
                    job,
                    body,
                    self._store.parts(job.id) if job.batched else {},
                    model.context.entry.config_keys,
                    self._read_file,
                    max_result_bytes=self._settings.max_result_bytes,
                )
                for job, body in readable
            ]
        except Exception:
            # Otherwise the parent would think that the child hangs here, although it is idle by then.
            self._recorder.note_prepared()
            raise
        jobs.opened += opened
        jobs.pending += [item for job in opened for item in job.items if not item.is_done]

    def _read_requests(self, claimed: Sequence[Claimed]) -> list[tuple[Claimed, bytes | None]]:
        """The requests that can be read, in order."""
        try:
            return list(zip(claimed, self._store.inputs(claimed), strict=True))
        except BlobError:
            pass
        # The jobs beside must not wait for one that cannot be read.
        readable = {job.id: body for job, body in self._read_from_redis(claimed)}
        failures = 0
        for job in claimed:
            if job.blob is not None and failures < MAX_READ_FAILURES:
                try:
                    (readable[job.id],) = self._store.inputs([job])
                except BlobError:
                    failures += 1
        for job in claimed:
            if job.id not in readable:
                logger.warning("job %s: its request cannot be read now", job.id)
        return [(job, readable[job.id]) for job in claimed if job.id in readable]

    def _read_from_redis(self, claimed: Sequence[Claimed]) -> Iterator[tuple[Claimed, bytes | None]]:
        jobs = [job for job in claimed if job.blob is None]
        return zip(jobs, self._store.inputs(jobs), strict=True)

    def prepare_portion(self, model: LoadedModel, jobs: ClaimedJobs, batch: int, stopping: Event) -> None:
        """Prepares the next portion. Once ``stopping`` is set, the remaining items stay unprepared.

        Args:
            model: The model whose runners prepare the items.
            jobs: Opened jobs.
            batch: Items in a batch.
            stopping: Set when this process should end.
        """
        count = 1 if jobs.has_suspect else batch * PORTION_BATCHES
        portion, jobs.pending = jobs.pending[:count], jobs.pending[count:]
        # Items of canceled jobs are left out.
        wanted = [item for item in portion if not item.job.is_done]
        self._recorder.note_preparing(_names(wanted))
        try:
            self._prepare_each(model, wanted, stopping)
        finally:
            self._recorder.note_prepared()
        jobs.ready += [item for item in wanted if item.prepared is not None]

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def _prepare_each(self, model: LoadedModel, items: Sequence[Item], stopping: Event) -> None:
        left, noted_at = set(items), time.monotonic()
        took_s: list[float] = []

        def prepare_timed(item: Item) -> Item:
            if not stopping.is_set():
                started = time.monotonic()
                prepare_one(model, item)
                took_s.append(time.monotonic() - started)
            return item

        inline = len(items) == 1 or self._item_s.get(model.name, 1.0) < INLINE_PREPARE_S
        for item in map(prepare_timed, items) if inline else self._pool.map(prepare_timed, items):
            left.discard(item)
            if left and time.monotonic() - noted_at >= ALIVE_EVERY_S:
                noted_at = time.monotonic()
                self._recorder.note_preparing(_names(left))
        if took_s:
            # The minimum: a thread that waits for the interpreter lock takes longer than its item.
            self._item_s[model.name] = min(took_s)

    def _read_file(self, file_id: str) -> bytes:
        """Returns the content of a file that a job names. Called by the threads that prepare."""
        try:
            content = self._store.read_file(file_id)
        except (RedisError, BlobError) as error:
            raise FileUnavailableError(str(error)) from error
        if content is None:
            raise MediaError(ErrorCode.MEDIA_NOT_FOUND, "The file no longer exists: upload it again.")
        return content


def prepare_one(model: LoadedModel, item: Item) -> None:
    """Prepares one item with the runner of its task. May run in any thread."""
    try:
        runner = model.runner(item.job.claimed.task)
    except ModelmillError as error:
        item.error = error
        return
    preprocess(runner, item)


def _names(items: Iterable[Item]) -> list[tuple[str, str, int]]:
    return [(item.job.claimed.id, item.job.claimed.fence, item.index) for item in items]
