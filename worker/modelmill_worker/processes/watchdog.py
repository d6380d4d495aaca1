"""Looks after a node's child: kills one that hangs, and returns the jobs of one that died.

Only the parent knows which items were in progress when its child died. So only here does a death count
against a job.
"""

from __future__ import annotations

import logging
import os
import signal
import time

import psutil

from modelmill.settings import Settings
from modelmill.store import Released, Return, WorkerStore
from modelmill_worker import metrics
from modelmill_worker.child_state import ChildState, LoadDeaths, Phase, Recorder

logger = logging.getLogger(__name__)

MAX_LOAD_DEATHS = 3
"""After so many deaths of its loaders in a row, a model is not loaded for a while."""
FIRST_REST_S, LONGEST_REST_S = 60.0, 3600.0
"""How long the model is not loaded then. Each further death doubles it."""
STORING = "a write to the blob store"


class Watchdog:
    """Checks the child several times a second. Used by one thread of the parent."""

    def __init__(self, settings: Settings, store: WorkerStore, recorder: Recorder) -> None:
        self._settings = settings
        self._store = store
        self._recorder = recorder
        self._to_return: list[ChildState] = []
        """Dead children whose jobs are not returned yet."""
        self._stuck_in_the_blob_store: set[int] = set()
        """The process ids of children that were killed because of it."""

    def check(self) -> None:
        """Checks the present child and its predecessors.

        Raises:
            RedisError: the store does not answer. The next call goes on where this one stopped.
        """
        for state in self._recorder.take_dead():
            self._record_death(state)
        present = self._recorder.read()
        if present is not None and not _is_alive(present.pid):
            self._recorder.forget(present.pid)
            self._record_death(present)
        elif present is not None and (phase := self._hung_phase(present)):
            logger.error("process %d hangs in %s of model %s; killing it", present.pid, phase, present.model)
            if phase == STORING:
                self._stuck_in_the_blob_store.add(present.pid)
            os.kill(present.pid, signal.SIGKILL)
        while self._to_return:
            self._return_jobs(self._to_return[0])
            self._to_return.pop(0)

    def _hung_phase(self, state: ChildState) -> str:
        """The phase in which the child hangs; empty if it does not."""
        limits_s = {
            Phase.FORWARD: self._settings.batch_timeout_s,
            Phase.LOADING: self._settings.load_timeout_s,
        }
        if state.age_s > limits_s.get(state.phase, float("inf")):
            return state.phase.value
        # Preparation waits for the job store for a minute at most. The rest of a drain may wait for hours, if
        # the job store does not answer. A call of the blob store is noted without these waits.
        if state.storing_s > self._settings.batch_timeout_s:
            return STORING
        return "preparing" if state.preparing_s > self._settings.batch_timeout_s else ""

    def _record_death(self, state: ChildState) -> None:
        metrics.child_died(state.pid)
        if state.phase is Phase.IDLE and not state.fences:
            # The normal end of a node.
            logger.info("process %d has ended", state.pid)
            return
        logger.error("process %d died in phase %s of model %s", state.pid, state.phase.value, state.model)
        if state.phase is Phase.LOADING:
            self._count_load_death(state.model)
        self._to_return.append(state)

    def _count_load_death(self, model: str) -> None:
        # No job was claimed, so the death counts against the model and against no job.
        known = self._recorder.load_deaths()
        deaths = known.setdefault(model, LoadDeaths())
        deaths.count += 1
        if deaths.count >= MAX_LOAD_DEATHS:
            rest_s = min(FIRST_REST_S * 2 ** (deaths.count - MAX_LOAD_DEATHS), LONGEST_REST_S)
            deaths.not_before = time.monotonic() + rest_s
        self._recorder.write_load_deaths(known)

    def _return_jobs(self, state: ChildState) -> None:
        """Returns a dead child's jobs: those in progress as suspects, the others as if never claimed."""
        members = {*state.forward, *state.preparing}
        if state.pid in self._stuck_in_the_blob_store:
            # No input of a model is to blame for that.
            members = set()
        in_progress = {(job_id, fence): index for job_id, fence, index in members}
        claimed = {(job_id, fence) for fence in state.fences for job_id in self._store.claimed_under(fence)}
        untouched = [Released(job_id, fence) for job_id, fence in claimed - in_progress.keys()]
        # An item that was in progress alone has caused the death. If several were, each is a suspect.
        why = Return.CRASHED if len(members) == 1 else Return.SUSPECT
        suspects = [Released(job_id, fence, why, index) for (job_id, fence), index in in_progress.items()]
        settlements = self._store.settle([*untouched, *suspects])
        logger.warning(
            "returned the jobs of process %d: %d untouched, %d %s; %s",
            state.pid,
            len(untouched),
            len(suspects),
            why.value,
            ", ".join(sorted({settlement.value for settlement in settlements})) or "nothing claimed",
        )
        self._stuck_in_the_blob_store.discard(state.pid)


def _is_alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
