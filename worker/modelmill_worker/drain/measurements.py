"""What this process measures of its models, and keeps in the job store for the next process."""

from __future__ import annotations

import logging
from typing import Any

from redis.exceptions import RedisError

from modelmill.settings import Settings
from modelmill.store import WorkerStore
from modelmill_backends.loader import LoadedModel
from modelmill_worker.drain.sizing import BatchSizer

logger = logging.getLogger(__name__)


class Measurements:
    """Batch sizes and speeds by model. One object serves a process's whole life.

    The drain thread writes; the heartbeat thread reads the batch sizes to announce them.
    """

    def __init__(self, settings: Settings, store: WorkerStore) -> None:
        self._settings = settings
        self._store = store
        self._sizers: dict[str, BatchSizer] = {}
        self._stored: dict[str, dict[str, int]] = {}
        """The batch sizes that the store has, by model."""
        self.portion_s: dict[str, float] = {}
        """How long the last portion of a model took to run. Drain thread only."""

    def sizer(self, model: LoadedModel) -> BatchSizer:
        """The batch size of ``model`` on this device. It starts with what an earlier process learned.

        Raises:
            RedisError: the store does not answer.
        """
        if model.name not in self._sizers:
            cap = model.context.entry.max_batch or self._settings.max_batch
            known = self._store.recall_sizing(model.name, model.context.device.kind)
            self._stored[model.name] = known
            self._sizers[model.name] = BatchSizer(
                min(cap, known.get("cap", cap)), known.get("best", 0), lowered="cap" in known
            )
        return self._sizers[model.name]

    def sizes(self) -> dict[str, dict[str, Any]]:
        """Batch sizes and their speeds by model, as the node announces them."""
        # Copies: the drain thread may add a model or a size meanwhile.
        return {
            name: {
                "batch_size": sizer.best,
                "max_batch": sizer.cap,
                "items_per_s": {str(size): round(rate, 1) for size, rate in dict(sizer.rates).items()},
            }
            for name, sizer in dict(self._sizers).items()
        }

    def store(self, model: LoadedModel, jobs: int, seconds: float) -> None:
        """Writes to the job store what a run has learned.

        Args:
            model: The model.
            jobs: How many jobs the run ended.
            seconds: How long it worked, without the time that it waited for jobs.
        """
        name = model.name
        learned = self._sizers[name].learned
        try:
            if learned != self._stored[name]:
                self._store.remember_sizing(name, model.context.device.kind, learned)
                self._stored[name] = learned
            # A single job measures how long a bell takes, and not how fast a queue is worked off.
            if jobs > 1:
                self._store.report_rate(name, jobs / max(seconds, 1e-3))
        except RedisError as error:
            # A server at its memory limit refuses this, and still accepts results.
            logger.warning("what was learned of model %s was not stored: %s", name, error)
