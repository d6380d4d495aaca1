"""Watches a node's child: ends one that hangs, and gives back what a dead one held.

Only this living parent saw the child die with a job in hand, in ``forward`` or being prepared, so only here
is a job charged for it.
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
from modelmill_worker.child_state import Flight, LoadDeaths, Phase, Recorder

logger = logging.getLogger(__name__)

MAX_LOAD_DEATHS = 3
FIRST_REST_S, LONGEST_REST_S = 60.0, 3600.0
"""How long a model is not loaded after it killed its loaders; doubled each time."""


class Undertaker:
    """To be asked several times a second, by one thread of the parent."""

    def __init__(self, settings: Settings, store: WorkerStore, recorder: Recorder) -> None:
        self._settings = settings
        self._store = store
        self._recorder = recorder
        self._unburied: list[Flight] = []

    def tend(self) -> None:
        """Looks at the child, and at those before it.

        Raises:
            RedisError: the store is away; what is left to do is done when asked again.
        """
        for flight in self._recorder.take_dead():
            self._mourn(flight)
        present = self._recorder.read()
        if present is not None and not _lives(present.pid):
            self._recorder.bury(present.pid)
            self._mourn(present)
        elif present is not None and (where := self._hangs(present)):
            logger.error("process %d hangs in %s of model %s; killing it", present.pid, where, present.model)
            os.kill(present.pid, signal.SIGKILL)
        while self._unburied:
            self._give_back(self._unburied[0])
            self._unburied.pop(0)

    def _hangs(self, flight: Flight) -> str:
        """Where a child makes no progress, if it does not."""
        limits_s = {
            Phase.FORWARD: self._settings.batch_timeout_s,
            Phase.LOADING: self._settings.load_timeout_s,
        }
        if flight.age_s > limits_s.get(flight.phase, float("inf")):
            return flight.phase.value
        # It waits for the job store for a minute at most, unlike the rest of a drain, which waits for hours.
        return "preparing" if flight.preparing_s > self._settings.batch_timeout_s else ""

    def _mourn(self, flight: Flight) -> None:
        metrics.child_died(flight.pid)
        if flight.phase is Phase.IDLE and not flight.fences:
            # As at the end of every node.
            logger.info("process %d has ended", flight.pid)
            return
        logger.error("process %d died in phase %s of model %s", flight.pid, flight.phase.value, flight.model)
        if flight.phase is Phase.LOADING:
            self._count_load_death(flight.model)
        self._unburied.append(flight)

    def _count_load_death(self, model: str) -> None:
        # Nothing was claimed, so no job is charged; the model is.
        known = self._recorder.load_deaths()
        deaths = known.setdefault(model, LoadDeaths())
        deaths.count += 1
        if deaths.count >= MAX_LOAD_DEATHS:
            rest_s = min(FIRST_REST_S * 2 ** (deaths.count - MAX_LOAD_DEATHS), LONGEST_REST_S)
            deaths.not_before = time.monotonic() + rest_s
        self._recorder.write_load_deaths(known)

    def _give_back(self, flight: Flight) -> None:
        """Returns a dead child's jobs: those in hand as suspects, the others as if never taken."""
        members = {*flight.forward, *flight.preparing}
        alone = len(members) == 1
        inside = {(job_id, fence): index for job_id, fence, index in members}
        held = {(job_id, fence) for fence in flight.fences for job_id in self._store.claimed_under(fence)}
        released = [Released(*job) for job in held - inside.keys()]
        why = Return.CRASHED if alone else Return.SUSPECT
        suspects = [Released(*job, why, index) for job, index in inside.items()]
        verdicts = self._store.settle([*released, *suspects])
        logger.warning(
            "returned the jobs of process %d: %d untouched, %d %s; %s",
            *(flight.pid, len(released), len(suspects), why.value),
            ", ".join(sorted({verdict.value for verdict in verdicts})) or "nothing held",
        )


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
