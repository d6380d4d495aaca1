"""The progress of a forward pass with many steps: reported to the job store and to the node's parent."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from modelmill.store import JobProgress
from modelmill_backends.progress import ProgressSink
from modelmill_worker.drain.jobs import Item
from modelmill_worker.drain.leases import Leases

ALIVE_EVERY_S = 1.0
"""How often a pass that makes steps says that it does not hang."""


class PassProgress(ProgressSink):
    """The progress of one forward pass.

    Args:
        batch: The items in it, in order.
        leases: They report the progress with the next heartbeat, and know which jobs were canceled.
        still_alive: Called about once a second while the pass makes steps. The time limit of a pass applies
            to a pass that makes none.
    """

    def __init__(self, batch: Sequence[Item], leases: Leases, still_alive: Callable[[], None]) -> None:
        self._batch = batch
        self._leases = leases
        self._still_alive = still_alive
        self._said_at = time.monotonic()

    def report(self, index: int, done: int, total: int, unit: str) -> None:
        claimed = self._batch[index].job.claimed
        if not claimed.batched:
            self._leases.note_progress(claimed.id, JobProgress(done, total, unit))
        if time.monotonic() - self._said_at >= ALIVE_EVERY_S:
            self._said_at = time.monotonic()
            self._still_alive()

    def is_canceled(self, index: int) -> bool:
        job_id = self._batch[index].job.claimed.id
        return self._leases.is_canceled(job_id) or self._leases.is_lost(job_id)
