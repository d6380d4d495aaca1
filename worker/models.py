"""The loaded models of one child: least recently used first out, within a memory budget."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass

from backends.contract import LoadContext
from backends.device import Device, free_memory, keep_memory, total_bytes, used_bytes
from backends.loader import LoadedModel
from backends.registry import prepare
from modelmill.catalogue import Catalogue
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import MIB, Settings
from worker import metrics
from worker.recorder import Recorder

logger = logging.getLogger(__name__)

BUDGET_SHARE = 0.6
"""Share of the device's memory for weights; the rest is for activations and the system."""
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 300.0


@dataclass
class ModelState:
    """What a node says of one model. Statuses: loading, running, failed, stopped."""

    status: str
    since: float
    """Seconds since the epoch."""
    memory_mib: int | None = None
    load_s: float | None = None
    error: str | None = None
    revision: str | None = None


class ModelCache:
    """Loads models on first use and evicts those used longest ago. Used by one thread."""

    def __init__(
        self,
        catalogue: Catalogue,
        device: Device,
        settings: Settings,
        recorder: Recorder,
        changed: Callable[[], None],
    ) -> None:
        self._catalogue = catalogue
        # Not at the first load: nobody waits yet.
        prepare(catalogue.values())
        self._device = device
        self._settings = settings
        self._recorder = recorder
        self._changed = changed
        self._used_at = time.monotonic()
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._memory: dict[str, int] = {}
        self._failures: dict[str, tuple[int, float, ModelmillError]] = {}
        self.states: dict[str, ModelState] = {}
        self.pinned = False
        """An unloaded model still holds memory of the device: only the end of this process frees it."""

    @property
    def budget_bytes(self) -> int:
        return self._settings.model_memory_bytes or int(total_bytes(self._device) * BUDGET_SHARE)

    def get(self, name: str) -> LoadedModel:
        """The model, loaded; others are evicted if it needs their room.

        Raises:
            ModelmillError: it cannot be loaded. For a while after, the same error comes at once.
        """
        self._used_at = time.monotonic()
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        count, not_before, error = self._failures.get(name, (0, 0.0, None))
        if error is not None and time.monotonic() < not_before:
            raise error
        self._refuse_deadly(name)
        entry = self._catalogue.find(name)
        estimate = (entry.memory_mib or 0) * MIB
        self._make_room(name, estimate)
        self._recorder.loading(name)
        self._set(name, ModelState("loading", time.time()))
        logger.info("loading model %s on %s", name, self._device.kind)
        context = LoadContext(entry, self._device, self._catalogue, self._settings)
        before, started = used_bytes(self._device), time.monotonic()
        try:
            if self._device.kind not in entry.devices:
                raise ModelmillError(
                    ErrorCode.MODEL_LOAD_FAILED,
                    f"Model {name} runs on {' or '.join(entry.devices)}, "
                    f"and this worker is on {self._device.kind}.",
                )
            model = LoadedModel(context).load()
        except ModelmillError as problem:
            backoff_s = min(FIRST_BACKOFF_S * 2**count, LONGEST_BACKOFF_S)
            self._failures[name] = (count + 1, time.monotonic() + backoff_s, problem)
            self._set(name, ModelState("failed", time.time(), error=problem.message))
            logger.error("model %s failed to load: %s", name, problem.message)
            raise
        finally:
            self._recorder.idle()
        load_s = time.monotonic() - started
        # Weights that are mapped from a file show in resident memory only once they are used.
        taken = max(used_bytes(self._device) - before, estimate)
        self._memory[name] = taken
        self._loaded[name] = model
        self._failures.pop(name, None)
        state = ModelState("running", time.time(), taken // MIB, round(load_s, 3))
        state.revision = entry.source.revision if entry.source else None
        self._set(name, state)
        keep_memory()
        metrics.model_loaded(name, load_s)
        logger.info("loaded model %s in %.1f s, %d MiB", name, load_s, taken // MIB)
        self._make_room(name, 0)
        return model

    def is_loaded(self, name: str) -> bool:
        return name in self._loaded

    @property
    def free_bytes(self) -> int:
        """What is left of the budget."""
        return max(0, self.budget_bytes - sum(self._memory.values()))

    def idle_s(self) -> float:
        """Seconds since a model was last asked for."""
        return time.monotonic() - self._used_at

    def unload(self, name: str) -> None:
        """Frees a model, if it is loaded; it loads again when it is next used."""
        self._failures.pop(name, None)
        self._evict(name)
        self._set(name, ModelState("stopped", time.time()))

    def close(self) -> None:
        for name in list(self._loaded):
            self._evict(name)

    def describe(self) -> dict[str, dict[str, object]]:
        """The states, as a node announces them."""
        # A copy first: the heartbeat thread reads while this thread loads.
        return {name: asdict(state) for name, state in dict(self.states).items()}

    def _refuse_deadly(self, name: str) -> None:
        """A model whose loading killed this child's predecessors gets a rest, like one that fails to load."""
        deaths = self._recorder.load_deaths().get(name)
        if deaths is not None and time.monotonic() < deaths.not_before:
            problem = ModelmillError(
                ErrorCode.MODEL_LOAD_FAILED,
                f"Model {name}: the worker process died {deaths.count} times while it loaded the model.",
            )
            self._set(name, ModelState("failed", time.time(), error=problem.message))
            raise problem

    def _make_room(self, newcomer: str, needed: int) -> None:
        while sum(self._memory.values()) + needed > self.budget_bytes:
            victim = next((name for name in self._loaded if name != newcomer), None)
            if victim is None:
                return
            logger.info("evicting model %s: the memory budget is used up", victim)
            self._evict(victim)
            metrics.model_evicted(victim)
            self._set(victim, ModelState("stopped", time.time()))

    def _evict(self, name: str) -> None:
        taken = self._memory.pop(name, 0)
        model = self._loaded.pop(name, None)
        if model is None:
            return
        before = used_bytes(self._device)
        model.close()
        del model
        free_memory()
        freed = before - used_bytes(self._device)
        # Resident memory tells too little on the CPU, where pages are shared and kept; a GPU's is exact.
        if self._device.kind == "cuda" and freed < taken // 2:
            logger.warning("model %s left %d MiB behind", name, (taken - freed) // MIB)
            self.pinned = True

    def _set(self, name: str, state: ModelState) -> None:
        self.states[name] = state
        self._changed()
