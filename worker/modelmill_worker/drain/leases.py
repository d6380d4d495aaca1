"""The leases of the jobs in hand: kept alive by heartbeats, and what the heartbeats learn."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from redis.exceptions import RedisError

from modelmill.store import Claimed, JobProgress, WorkerStore

logger = logging.getLogger(__name__)


class Leases:
    """Jobs held by this process. Thread-safe: one thread beats, others take, drop and ask."""

    def __init__(self, store: WorkerStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._held: dict[str, str] = {}
        self._lost: set[str] = set()
        self._cancel: set[str] = set()
        self._progress: dict[str, JobProgress] = {}

    def hold(self, jobs: Iterable[Claimed]) -> None:
        with self._lock:
            self._held |= {job.id: job.fence for job in jobs}

    def drop(self, job_ids: Iterable[str]) -> None:
        """The jobs are settled, or not ours any more."""
        with self._lock:
            for job_id in job_ids:
                self._held.pop(job_id, None)
                self._lost.discard(job_id)
                self._cancel.discard(job_id)
                self._progress.pop(job_id, None)

    def tell(self, job_id: str, progress: JobProgress) -> None:
        """How far a job is: goes along with the next heartbeat."""
        with self._lock:
            if job_id in self._held:
                self._progress[job_id] = progress

    def is_lost(self, job_id: str) -> bool:
        """Whether the job belongs to somebody else by now, so that running it is of no use."""
        with self._lock:
            return job_id in self._lost

    def is_canceled(self, job_id: str) -> bool:
        """Whether somebody asked for the job to be canceled."""
        with self._lock:
            return job_id in self._cancel

    def beat(self) -> None:
        """Extends every lease. An unreachable store is only logged: after an outage leases have grace."""
        with self._lock:
            held = list(self._held.items())
            progress, self._progress = self._progress, {}
        if not held:
            return
        try:
            beat = self._store.beat(held, progress)
        except RedisError as error:
            logger.warning("heartbeat failed: %s", error)
            return
        with self._lock:
            self._lost |= beat.lost & self._held.keys()
            self._cancel |= beat.cancel & self._held.keys()
