"""The loaded models of one child: least recently used first out, within a memory budget."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

from redis.exceptions import RedisError

from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import MIB, Settings
from modelmill.states import ModelPhase
from modelmill.store import WorkerStore
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device, free_memory, keep_memory, total_bytes, used_bytes
from modelmill_backends.failures import NoGpuRuntimeError, is_out_of_memory
from modelmill_backends.loader import LoadedModel
from modelmill_backends.registry import prepare
from modelmill_worker import metrics
from modelmill_worker.child_state import Recorder

logger = logging.getLogger(__name__)

BUDGET_SHARE = 0.6
"""Share of the device's memory for weights; the rest is for activations and the system."""
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 300.0


@dataclass
class ModelState:
    """What a node says of one model."""

    status: ModelPhase
    since: float
    """Seconds since the epoch."""
    memory_mib: int | None = None
    load_s: float | None = None
    error: str | None = None
    revision: str | None = None
    device: str | None = None
    """Where it runs, if that is not the node's device."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Loading a model failed, ``count`` times in a row."""

    count: int
    not_before: float
    """``time.monotonic`` until which it is not tried again."""
    error: ModelmillError


class ModelCache:
    """Loads models on first use and evicts those used longest ago. Used by one thread.

    Args:
        catalogue: All models.
        device: The node's.
        settings: For the memory budget.
        recorder: Is told of loads, in case the process dies.
        changed: Called whenever the state of a model has changed.
        store: Remembers what models take whose entries do not say it.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        device: Device,
        settings: Settings,
        recorder: Recorder,
        changed: Callable[[], None],
        store: WorkerStore | None = None,
    ) -> None:
        self._catalogue = catalogue
        # Not at the first load: nobody waits yet.
        prepare(catalogue.values())
        self._device = device
        self._settings = settings
        self._recorder = recorder
        self._changed = changed
        self._store = store
        self._used_at = time.monotonic()
        self._loaded: OrderedDict[str, LoadedModel] = OrderedDict()
        self._memory: dict[str, int] = {}
        self._failures: dict[str, _Failure] = {}
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
        failure = self._failures.get(name)
        if failure is not None and time.monotonic() < failure.not_before:
            raise failure.error
        self._refuse_deadly(name)
        try:
            model = self._load(self._catalogue.find(name))
        except ModelmillError as problem:
            self._note_failure(name, problem)
            raise problem.with_traceback(None) from None
        self._failures.pop(name, None)
        self._recorder.forget_load_deaths(name)
        return model

    def is_loaded(self, name: str) -> bool:
        return name in self._loaded

    def rests(self, name: str) -> bool:
        """Whether loading the model failed here and is not tried again yet."""
        return self._retry_in_s(name) > 0.0

    def estimate_mib(self, name: str) -> int:
        """What the model takes on this device, as its entry says or workers measured; 0 if nobody knows."""
        said = self._catalogue.find(name).memory_mib
        if said or self._store is None:
            return said or 0
        try:
            return self._store.recall_memory(name, self._device.kind)
        except RedisError as error:
            logger.warning("what model %s takes of the memory is not known: %s", name, error)
            return 0

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
        self._set(name, ModelState(ModelPhase.STOPPED, time.time()))

    def close(self) -> None:
        for name in list(self._loaded):
            self._evict(name)

    def describe(self) -> dict[str, dict[str, object]]:
        """The states, as a node announces them; of failed ones also ``retry_in_s``, 0 when it may be now."""
        # A copy first: the heartbeat thread reads while this thread loads.
        said: dict[str, dict[str, object]] = {}
        for name, state in dict(self.states).items():
            said[name] = asdict(state)
            if state.status is ModelPhase.FAILED:
                said[name]["retry_in_s"] = round(self._retry_in_s(name), 1)
        return said

    def _retry_in_s(self, name: str) -> float:
        failure, deaths = self._failures.get(name), self._recorder.load_deaths().get(name)
        not_before = max((each.not_before for each in (failure, deaths) if each is not None), default=0.0)
        return max(0.0, not_before - time.monotonic())

    def _refuse_deadly(self, name: str) -> None:
        """A model whose loading killed this child's predecessors gets a rest, like one that fails to load."""
        deaths = self._recorder.load_deaths().get(name)
        if deaths is not None and time.monotonic() < deaths.not_before:
            problem = ModelmillError(
                ErrorCode.MODEL_LOAD_FAILED,
                f"Model {name}: the worker process died {deaths.count} times while it loaded the model.",
            )
            self._set(name, ModelState(ModelPhase.FAILED, time.time(), error=problem.message))
            raise problem

    def _note_failure(self, name: str, problem: ModelmillError) -> None:
        # What led to it holds frames, and they hold what had been loaded of the model.
        problem.__cause__ = problem.__context__ = None
        count = self._failures[name].count if name in self._failures else 0
        backoff_s = min(FIRST_BACKOFF_S * 2**count, LONGEST_BACKOFF_S)
        self._failures[name] = _Failure(count + 1, time.monotonic() + backoff_s, problem)
        self._set(name, ModelState(ModelPhase.FAILED, time.time(), error=problem.message))
        logger.error("model %s failed to load: %s", name, problem.message)

    def _load(self, entry: ModelEntry) -> LoadedModel:
        name = entry.name
        device = self._device_for(entry)
        estimate_mib = self.estimate_mib(name) if device == self._device else 0
        self._make_room(name, estimate_mib * MIB)
        self._recorder.loading(name)
        self._set(name, ModelState(ModelPhase.LOADING, time.time()))
        logger.info("loading model %s on %s", name, device.kind)
        started = time.monotonic()
        try:
            context = LoadContext(entry, device, self._catalogue, self._settings)
            model, before = self._load_in_what_there_is(context)
        finally:
            self._recorder.idle()
        load_s = time.monotonic() - started
        on_device = model.context.device == self._device
        # Weights that are mapped from a file show in resident memory only once they are used.
        taken = max(used_bytes(self._device) - before, estimate_mib * MIB) if on_device else 0
        if on_device and not entry.memory_mib and taken // MIB > estimate_mib:
            self._remember(name, taken // MIB)
        self._memory[name] = taken
        self._loaded[name] = model
        state = ModelState(ModelPhase.RUNNING, time.time(), taken // MIB, round(load_s, 3))
        state.revision = entry.source.revision if entry.source else None
        state.device = None if on_device else model.context.device.kind
        self._set(name, state)
        keep_memory()
        metrics.model_loaded(name, load_s)
        logger.info("loaded model %s in %.1f s, %d MiB", name, load_s, taken // MIB)
        self._make_room(name, 0)
        return model

    def _device_for(self, entry: ModelEntry) -> Device:
        """This node's device, or the CPU of a GPU's host for a model that runs there only."""
        if self._device.kind in entry.devices:
            return self._device
        if "cpu" in entry.devices:
            return replace(self._device, kind="cpu")
        raise ModelmillError(
            ErrorCode.MODEL_LOAD_FAILED,
            f"Model {entry.name} runs on {' or '.join(entry.devices)}, "
            f"and this worker is on {self._device.kind}.",
        )

    def _load_in_what_there_is(self, context: LoadContext) -> tuple[LoadedModel, int]:
        """Loads, and again without the model used longest ago each time that memory runs out.

        Returns:
            The model, and the bytes of the device that were used before it came.
        """
        entry = context.entry
        while True:
            before = used_bytes(self._device)
            try:
                return LoadedModel(context).load(), before
            except NoGpuRuntimeError as problem:
                if "cpu" not in entry.devices:
                    raise
                logger.warning("%s. Until then it runs on the CPU", problem.message)
                context = replace(context, device=replace(self._device, kind="cpu"))
                continue
            except ModelmillError as problem:
                if not self._loaded or not is_out_of_memory(problem):
                    raise
                logger.warning("memory ran out while model %s was loaded: %s", entry.name, problem.message)
            # Outside of `except`: the exception holds frames, and they hold what had been loaded.
            self._evict_for(entry.name, next(iter(self._loaded)))

    def _remember(self, name: str, memory_mib: int) -> None:
        try:
            if self._store is not None:
                self._store.remember_memory(name, self._device.kind, memory_mib)
        except RedisError as error:
            logger.warning("what model %s takes of the memory was not remembered: %s", name, error)

    def _make_room(self, newcomer: str, needed: int) -> None:
        while sum(self._memory.values()) + needed > self.budget_bytes:
            # What runs on the CPU of a GPU's host takes nothing of the budget.
            victim = next((name for name in self._loaded if name != newcomer and self._memory[name]), None)
            if victim is None:
                return
            self._evict_for(newcomer, victim)

    def _evict_for(self, newcomer: str, victim: str) -> None:
        logger.info("evicting model %s: its memory is needed for %s", victim, newcomer)
        self._evict(victim)
        metrics.model_evicted(victim)
        self._set(victim, ModelState(ModelPhase.STOPPED, time.time()))

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
