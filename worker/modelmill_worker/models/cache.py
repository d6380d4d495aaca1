"""The loaded models of one child, within a memory budget. The least recently used model is unloaded first."""

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
"""How long a model that failed to load is not tried again. Each failure doubles it."""


@dataclass
class ModelState:
    """What a node announces about one model. Statuses: loading, running, failed, stopped."""

    status: ModelPhase
    since: float
    """Seconds since the epoch."""
    memory_mib: int | None = None
    load_s: float | None = None
    error: str | None = None
    revision: str | None = None
    device: str | None = None
    """The kind of device that it runs on, if that is not the node's device."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Loading a model failed, ``count`` times in a row."""

    count: int
    not_before: float
    """``time.monotonic`` until which loading is not tried again."""
    error: ModelmillError


class ModelCache:
    """Loads models on first use, and evicts those that were used longest ago.

    The thread that runs Celery tasks uses it. The heartbeat thread only reads.

    Args:
        catalogue: All models.
        device: The node's device.
        settings: For the memory budget.
        recorder: Notes loads in the child state, in case the process dies.
        changed: Called each time the state of a model has changed.
        store: Keeps the measured memory of models whose entries do not say it.
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
        # Now, and not at the first load, when jobs wait.
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
        """An unloaded model still holds memory of the device. Only the end of this process frees it."""

    @property
    def budget_bytes(self) -> int:
        return self._settings.model_memory_bytes or int(total_bytes(self._device) * BUDGET_SHARE)

    def get(self, name: str) -> LoadedModel:
        """Returns the loaded model. If it needs room, others are evicted.

        Raises:
            ModelmillError: it cannot be loaded. For a while, further calls raise the same error at once.
        """
        self._used_at = time.monotonic()
        if name in self._loaded:
            self._loaded.move_to_end(name)
            return self._loaded[name]
        failure = self._failures.get(name)
        if failure is not None and time.monotonic() < failure.not_before:
            raise failure.error
        self._refuse_after_deaths(name)
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
        """Whether loading the model failed here, and it is too early to try again."""
        return self._retry_in_s(name) > 0.0

    def estimate_mib(self, name: str) -> int:
        """The model's memory on this device: from its entry, or as workers measured it. 0 if unknown."""
        declared = self._catalogue.find(name).memory_mib
        if declared or self._store is None:
            return declared or 0
        try:
            return self._store.recall_memory(name, self._device.kind)
        except RedisError as error:
            logger.warning("the memory of model %s is not known: %s", name, error)
            return 0

    @property
    def free_bytes(self) -> int:
        """The bytes that are left of the budget."""
        return max(0, self.budget_bytes - sum(self._memory.values()))

    def idle_s(self) -> float:
        """Seconds since a model was last used."""
        return time.monotonic() - self._used_at

    def unload(self, name: str) -> None:
        """Unloads a model, if it is loaded. Its next use loads it again."""
        self._failures.pop(name, None)
        self._evict(name)
        self._set(name, ModelState(ModelPhase.STOPPED, time.time()))

    def close(self) -> None:
        for name in list(self._loaded):
            self._evict(name)

    def describe(self) -> dict[str, dict[str, object]]:
        """The states by model, as a node announces them.

        A failed model also has ``retry_in_s``; 0 means now.
        """
        announced: dict[str, dict[str, object]] = {}
        # A copy: the heartbeat thread reads while the other thread loads.
        for name, state in dict(self.states).items():
            announced[name] = asdict(state)
            if state.status is ModelPhase.FAILED:
                announced[name]["retry_in_s"] = round(self._retry_in_s(name), 1)
        return announced

    def _retry_in_s(self, name: str) -> float:
        failure, deaths = self._failures.get(name), self._recorder.load_deaths().get(name)
        not_before = max((each.not_before for each in (failure, deaths) if each is not None), default=0.0)
        return max(0.0, not_before - time.monotonic())

    def _refuse_after_deaths(self, name: str) -> None:
        """Refuses to load a model for a while if its loading killed this child's predecessors."""
        deaths = self._recorder.load_deaths().get(name)
        if deaths is not None and time.monotonic() < deaths.not_before:
            problem = ModelmillError(
                ErrorCode.MODEL_LOAD_FAILED,
                f"Model {name}: the worker process died {deaths.count} times while it loaded the model.",
            )
            self._set(name, ModelState(ModelPhase.FAILED, time.time(), error=problem.message))
            raise problem

    def _note_failure(self, name: str, problem: ModelmillError) -> None:
        # Its cause holds frames, and the frames hold the parts of the model that were loaded.
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
        self._recorder.note_loading(name)
        self._set(name, ModelState(ModelPhase.LOADING, time.time()))
        logger.info("loading model %s on %s", name, device.kind)
        started = time.monotonic()
        try:
            context = LoadContext(entry, device, self._catalogue, self._settings)
            model, before = self._load_evicting(context)
        finally:
            self._recorder.note_idle()
        load_s = time.monotonic() - started
        on_device = model.context.device == self._device
        # Weights that are mapped from a file count as resident memory only once they are used.
        taken = max(used_bytes(self._device) - before, estimate_mib * MIB) if on_device else 0
        if on_device and not entry.memory_mib and taken // MIB > estimate_mib:
            self._remember(name, taken // MIB)
        self._memory[name] = taken
        self._loaded[name] = model
        state = ModelState(
            ModelPhase.RUNNING,
            time.time(),
            memory_mib=taken // MIB,
            load_s=round(load_s, 3),
            revision=entry.source.revision if entry.source else None,
            device=None if on_device else model.context.device.kind,
        )
        self._set(name, state)
        keep_memory()
        metrics.model_loaded(name, load_s)
        logger.info("loaded model %s in %.1f s, %d MiB", name, load_s, taken // MIB)
        self._make_room(name, 0)
        return model

    def _device_for(self, entry: ModelEntry) -> Device:
        """This node's device; on a GPU's node, its host's CPU for a model that runs on CPUs only."""
        if self._device.kind in entry.devices:
            return self._device
        if "cpu" in entry.devices:
            return replace(self._device, kind="cpu")
        raise ModelmillError(
            ErrorCode.MODEL_LOAD_FAILED,
            f"Model {entry.name} runs on {' or '.join(entry.devices)}, "
            f"and this worker is on {self._device.kind}.",
        )

    def _load_evicting(self, context: LoadContext) -> tuple[LoadedModel, int]:
        """Loads a model. Each time memory runs out, evicts the model used longest ago and tries again.

        Returns:
            The model, and the bytes that were in use on the device before the load.
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
            # Outside of `except`: the exception holds frames, and the frames hold what was loaded.
            self._evict_for(entry.name, next(iter(self._loaded)))

    def _remember(self, name: str, memory_mib: int) -> None:
        try:
            if self._store is not None:
                self._store.remember_memory(name, self._device.kind, memory_mib)
        except RedisError as error:
            logger.warning("the memory of model %s was not stored: %s", name, error)

    def _make_room(self, newcomer: str, needed: int) -> None:
        while sum(self._memory.values()) + needed > self.budget_bytes:
            # A model on the CPU of a GPU's host takes nothing from the budget.
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
        # Only a GPU's figure is exact: on the CPU, pages are shared and kept.
        if self._device.kind == "cuda" and freed < taken // 2:
            logger.warning("model %s still holds %d MiB after it was unloaded", name, (taken - freed) // MIB)
            self.pinned = True

    def _set(self, name: str, state: ModelState) -> None:
        self.states[name] = state
        self._changed()
