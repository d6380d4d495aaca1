"""The leases of the claimed jobs: the heartbeat renews them, and learns which are lost or canceled."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable

from redis.exceptions import RedisError

from modelmill.store import Claimed, JobProgress, WorkerStore

logger = logging.getLogger(__name__)


class Leases:
    """The jobs that this process has claimed.

    Thread-safe. The heartbeat thread renews. The threads that claim add jobs, the threads that write outcomes
    drop them, and the drain thread notes progress and asks.
    """

    def __init__(self, store: WorkerStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        # All under the lock.
        self._fences: dict[str, str] = {}
        """By job id. Written by the threads that claim and that write outcomes."""
        self._lost: set[str] = set()
        """Written by the heartbeat thread; dropped jobs are removed."""
        self._cancel: set[str] = set()
        """Written by the heartbeat thread; dropped jobs are removed."""
        self._progress: dict[str, JobProgress] = {}
        """What the next heartbeat reports. Written by the drain thread, taken by the heartbeat thread."""

    def hold(self, jobs: Iterable[Claimed]) -> None:
        """Renews the leases of these jobs from now on."""
        with self._lock:
            self._fences |= {job.id: job.fence for job in jobs}

    def drop(self, job_ids: Iterable[str]) -> set[str]:
        """Renews the leases of these jobs no longer: they are settled or lost.

        Returns:
            The fences under which this process holds no job now, of those of the dropped jobs.
        """
        with self._lock:
            fences = set()
            for job_id in job_ids:
                fences.add(self._fences.pop(job_id, ""))
                self._lost.discard(job_id)
                self._cancel.discard(job_id)
                self._progress.pop(job_id, None)
            return fences - {"", *self._fences.values()}

    def note_progress(self, job_id: str, progress: JobProgress) -> None:
        """Notes how far a job is. The next heartbeat reports it."""
        with self._lock:
            if job_id in self._fences:
                self._progress[job_id] = progress

    def is_lost(self, job_id: str) -> bool:
        """Whether another worker may have the job by now. Then it is useless to run it here."""
        with self._lock:
            return job_id in self._lost

    def is_canceled(self, job_id: str) -> bool:
        """Whether the job's cancellation was requested."""
        with self._lock:
            return job_id in self._cancel

    def renew(self) -> None:
        """Renews every lease.

        If the store does not answer, this is logged: after an outage leases have grace.
        """
        with self._lock:
            held = list(self._fences.items())
            progress, self._progress = self._progress, {}
        if not held:
            return
        try:
            beat = self._store.beat(held, progress)
        except RedisError as error:
            logger.warning("heartbeat failed: %s", error)
            return
        with self._lock:
            self._lost |= beat.lost & self._fences.keys()
            self._cancel |= beat.cancel & self._fences.keys()
