"""Results that cannot be written now. They are held aside, so that no other job waits for them.

The job of a held result keeps its lease, and a thread tries again to write the result. The job ends under its
fence, or it goes back to the queue when the process stops.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from redis.exceptions import RedisError

from modelmill.errors import ModelmillError
from modelmill.settings import Settings
from modelmill.store import Claimed, Outcome, Released, Settlement, WorkerStore
from modelmill_worker import metrics
from modelmill_worker.child_state import Recorder
from modelmill_worker.drain.ends import canceled, failed, not_stored, report_end, too_large_for_redis
from modelmill_worker.drain.leases import Leases

logger = logging.getLogger(__name__)

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 2.0
"""Pause between two rounds of tries."""
FAILURES_A_ROUND = 4
"""After so many failures, a round leaves the other results for the same place alone: they would fail too."""
MAX_REFUSALS = 3
"""How often a result is tried that the server refuses although it says that it is well."""
STOP_S = 5.0
"""How long a stopping process waits for a try that is under way."""
DONE = frozenset({Settlement.OK, Settlement.REFUSED})


@dataclass(eq=False, slots=True)
class HeldResult:
    """A job whose result waits to be written."""

    outcome: Outcome
    claimed: Claimed
    model: str
    for_blobs: bool
    since: float = field(default_factory=time.monotonic)
    tries: int = 0
    refusals: int = 0

    @property
    def size(self) -> int:
        return len(self.outcome.result or b"")


class HeldResults:
    """The held results of a process. Thread-safe: the settle thread adds, a thread of its own removes.

    Args:
        settings: The limits.
        store: The job store.
        leases: They renew the leases of held jobs, and know which of them are canceled or lost.
        recorder: Notes the claims of held jobs, so that the parent returns them if this process dies.
    """

    def __init__(self, settings: Settings, store: WorkerStore, leases: Leases, recorder: Recorder) -> None:
        self._settings = settings
        self._store = store
        self._leases = leases
        self._recorder = recorder
        self._lock = threading.Lock()
        # Under the lock.
        self._held: dict[str, HeldResult] = {}
        """By job id."""
        self._bytes = 0
        self._thread: threading.Thread | None = None
        """Runs while there are held results."""
        self._closing = threading.Event()

    def must_wait(self, outcome: Outcome | Released) -> bool:
        """Whether a result should not even be tried now.

        While the blob store fails, each try may take long, and smaller results of other jobs would wait.
        """
        if not self._held or not self._store.is_for_blobs(outcome):
            return False
        with self._lock:
            return any(held.for_blobs for held in self._held.values())

    def hold(self, outcome: Outcome, claimed: Claimed, model: str) -> bool:
        """Takes a result over, and with it its job's lease. False if there is no room for it here."""
        held = HeldResult(outcome, claimed, model, self._store.is_for_blobs(outcome))
        with self._lock:
            count, size = len(self._held) + 1, self._bytes + held.size
            if self._closing.is_set() or (
                count > self._settings.max_held_results or size > self._settings.max_held_bytes
            ):
                return False
            self._held[outcome.id] = held
            self._bytes = size
            self._note()
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="held-results", daemon=True)
                self._thread.start()
        logger.warning("job %s: its result of %d bytes cannot be written now", outcome.id, held.size)
        return True

    def last_resort(self, outcome: Outcome, claimed: Claimed, model: str, why: ModelmillError) -> bool:
        """Writes a result for the blob store to Redis, or fails its job. Returns whether it has ended.

        Raises:
            RedisError: the server does not answer.
        """
        ends = [outcome] if self._store.is_for_blobs(outcome) else []
        for end in (*ends, failed(outcome, claimed, why)):
            (settlement,) = self._store.settle([end], spill=True)
            if settlement in DONE:
                report_end(end, claimed, model, settlement)
                return True
        return False

    def close(self) -> None:
        """Tries once more, and gives the jobs back whose results still cannot be written."""
        self._closing.set()
        thread = self._thread
        if thread is not None:
            # It may be in a write that hangs.
            thread.join(STOP_S)
        left = self._copy()
        if not left:
            return
        try:
            self._try_each(left)
            left = self._copy()
            self._store.settle([Released(held.outcome.id, held.outcome.fence) for held in left])
        except RedisError as error:
            # Their leases run out.
            logger.warning("%d jobs with results that were not written stay leased: %s", len(left), error)
        else:
            logger.warning("gave back %d jobs whose results cannot be written", len(left))
        self._remove(left)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while not self._closing.wait(pause_s):
            before = self._copy()
            try:
                self._try_each(before)
            except RedisError as error:
                # All results are kept. The drain claims nothing meanwhile, so they do not become more.
                logger.warning("the job store does not answer; holding %d results: %s", len(before), error)
            except Exception:
                logger.exception("writing held results failed")
            with self._lock:
                if not self._held:
                    self._thread = None
                    return
                goes_on = len(self._held) < len(before)
            pause_s = FIRST_PAUSE_S if goes_on else min(pause_s * 2, LONGEST_PAUSE_S)

    def _try_each(self, held: Iterable[HeldResult]) -> None:
        """One round. What was tried least comes first: one result cannot keep the others from a try."""
        failures: Counter[bool] = Counter()
        for each in sorted(held, key=lambda each: each.tries):
            writes = failures[each.for_blobs] < FAILURES_A_ROUND
            failures[each.for_blobs] += not self._try(each, writes=writes)

    def _try(self, held: HeldResult, *, writes: bool) -> bool:
        """Tries to end one job. Returns whether it has ended, or is no longer of this process.

        Without ``writes``, the result itself is not tried.
        """
        outcome, job_id = held.outcome, held.outcome.id
        settlement = Settlement.NOT_NOW
        if self._leases.is_lost(job_id):
            logger.warning("job %s: its lease was lost, so its result is discarded", job_id)
            self._remove([held])
            return True
        if self._leases.is_canceled(job_id):
            outcome, writes = canceled(outcome), True
        if writes:
            held.tries += 1
            (settlement,) = self._store.settle([outcome], storing=self._recorder.storing)
        if settlement in DONE:
            report_end(outcome, held.claimed, held.model, settlement)
            self._remove([held])
            return True
        held.refusals += settlement is Settlement.UNWRITABLE
        if (why := self._reason_to_give_up(held, settlement)) is None:
            return False
        if not self.last_resort(held.outcome, held.claimed, held.model, why):
            logger.error("job %s: the job store refuses each end of it; its lease runs out", job_id)
        self._remove([held])
        return True

    def _reason_to_give_up(self, held: HeldResult, settlement: Settlement) -> ModelmillError | None:
        if settlement is Settlement.TOO_LARGE:
            return too_large_for_redis()
        if held.refusals >= MAX_REFUSALS:
            return not_stored("the job store refuses it")
        return not_stored(self.trouble(held.outcome)) if self._is_over(held) else None

    def trouble(self, outcome: Outcome) -> str:
        """Why a result cannot be written, in words for its caller."""
        if self._store.is_for_blobs(outcome):
            return "the store for large results fails"
        return "the job store has no room for it"

    def _is_over(self, held: HeldResult) -> bool:
        return time.monotonic() - held.since >= self._settings.max_hold_s

    def _copy(self) -> list[HeldResult]:
        with self._lock:
            return list(self._held.values())

    def _remove(self, held: Iterable[HeldResult]) -> None:
        ids = [each.outcome.id for each in held]
        with self._lock:
            for job_id in ids:
                if (gone := self._held.pop(job_id, None)) is not None:
                    self._bytes -= gone.size
            self._note()
        for fence in self._leases.drop(ids):
            self._recorder.note_settled(fence)

    def _note(self) -> None:
        """Under the lock."""
        metrics.results_held(len(self._held), self._bytes)
        self._recorder.note_held({each.outcome.fence for each in self._held.values()})
