"""The child of a node: the one process that imports runtimes, holds models and runs batches."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import AbstractContextManager, suppress
from functools import cache
from types import FrameType

from celery import Celery
from redis.exceptions import RedisError

from modelmill.broker import DRAIN, Bells
from modelmill.catalogue import Catalogue
from modelmill.errors import ModelmillError
from modelmill.settings import MIB, get_settings
from modelmill.store import WorkerStore
from modelmill_backends.device import current_device
from modelmill_tasks.registry import all_tasks
from modelmill_worker.child_state import Recorder
from modelmill_worker.config import NodeConfig, state_folder
from modelmill_worker.drain.batches import DeviceLostError
from modelmill_worker.drain.drain import Drain
from modelmill_worker.drain.leases import Leases
from modelmill_worker.models.cache import ModelCache
from modelmill_worker.models.placement import Demand, better_node, other_node

logger = logging.getLogger(__name__)

NODE_TTL_BEATS = 5
"""Beats that a node may miss before it counts as gone."""


class Child:
    """Everything that outlives a single bell: the store, loaded models, leases and their heartbeat."""

    def __init__(self, app: Celery) -> None:
        self._settings = get_settings()
        # Looked up once now, and not when the first job is opened.
        all_tasks()
        self._device = current_device()
        self._catalogue = Catalogue.load(self._settings.models_file)
        self._config = NodeConfig.from_env(self._catalogue)
        self._recorder = Recorder(state_folder())
        self._recorder.child_started()
        self._store = WorkerStore(self._settings)
        self._bells = Bells(app, self._store.release_bell)
        self._leases = Leases(self._store)
        self._models = ModelCache(
            self._catalogue, self._device, self._settings, self._recorder, self._announce, self._store
        )
        self._drain = Drain(
            self._settings,
            self._store,
            self._leases,
            self._recorder,
            self._config.name,
            self._device.kind,
            self._config.models,
        )
        self._stopping = threading.Event()
        self._started_at = time.time()
        self._announcing = threading.Lock()
        threading.Thread(target=self._pulse, name="pulse", daemon=True).start()

    def drain(self, model: str, *, passed_on: bool = False) -> None:
        """Answers a bell; one that another node passed on is passed on again only if loading fails."""
        with self._until_sigterm():
            try:
                self._store.release_bell(model)
                was_loaded = self._models.is_loaded(model)
                if not was_loaded and not self._is_wanted_here(model, passed_on):
                    return
                started = time.monotonic()
                try:
                    loaded = self._models.get(model)
                except ModelmillError as error:
                    self._cannot_load(model, error, passed_on)
                    return
                load_s = 0.0 if was_loaded else time.monotonic() - started
                if self._stopping.is_set() or self._drain.run(loaded, self._stopping, load_s):
                    self._bells.ring(model)
                self._leave_if_pinned()
            except RedisError as error:
                # The reaper rings again when the store is back.
                logger.warning("drain of %s ended early: %s", model, error)
                time.sleep(1)
            except DeviceLostError as error:
                # Only a new process gets the device back. The parent sees to the jobs.
                logger.critical("the device is lost, ending this process: %s", error)
                os._exit(70)

    def load(self, model: str) -> None:
        """Loads a model ahead of its first job."""
        with self._until_sigterm():
            with suppress(ModelmillError):  # logged and announced by the cache
                self._models.get(model)
            try:
                # Not before this node says how it stands: in between nobody would know of the order.
                self._store.clear_model_starting(model)
            except RedisError as error:
                logger.warning("loading %s: %s", model, error)
            self._leave_if_pinned()

    def unload(self, model: str) -> None:
        """Frees a model's memory."""
        self._models.unload(model)
        self._leave_if_pinned()

    def _leave_if_pinned(self) -> None:
        if self._models.pinned:
            logger.warning("ending this process, to free memory that an unloaded model still holds")
            self._bells.close()
            # Nothing is claimed between two tasks, and the pool starts another process.
            os._exit(0)

    def _cannot_load(self, model: str, error: ModelmillError, passed_on: bool) -> None:
        """Leaves the jobs to a node that may load the model; if there is none, they end with the reason."""
        if self._models.pinned:
            # With the memory that this process cannot give back it may load.
            self._bells.ring(model)
            self._leave_if_pinned()
            return
        # A bell that was passed on before goes only where loading has not failed, and so not in circles.
        demand, nodes = self._demand(model), self._store.nodes()
        if node := other_node(demand, self._config.name, nodes, retry=not passed_on):
            self._pass_on(model, node)
        else:
            self._drain.fail_waiting(model, error)

    def _pass_on(self, model: str, node: str) -> None:
        self._store.send_away(node)
        self._bells.order(DRAIN, model, node, passed_on=True)

    def _is_wanted_here(self, model: str, passed_on: bool) -> bool:
        """Whether to load the model for its jobs; False if a better node was called, or none are left."""
        if passed_on:
            return self._store.depth(model) > 0
        demand = self._demand(model)
        if not demand.backlog:
            return False
        nodes = self._store.nodes()
        if node := better_node(demand, self._config.name, nodes, self._settings.spread_after_s):
            self._pass_on(model, node)
        return node is None

    def _demand(self, model: str) -> Demand:
        entry = self._catalogue[model]
        return Demand(
            model,
            backlog=self._store.depth(model),
            rate=self._store.rate(model),
            max_batch=entry.max_batch or self._settings.max_batch,
            memory_mib=self._models.estimate_mib(model),
            devices=entry.devices,
            device=self._device.kind,
            rests=self._models.rests(model),
        )

    def _until_sigterm(self) -> AbstractContextManager[None]:
        self._stopping.clear()
        return _Finishing(self._stopping)

    def _pulse(self) -> None:
        # What a predecessor said of its models does not hold any more.
        self._announce()
        while True:
            time.sleep(self._settings.beat_s)
            try:
                self._leases.beat()
            except Exception:
                # This thread keeps the leases: nothing may end it.
                logger.exception("heartbeat failed")
            self._announce()

    def _announce(self) -> None:
        """Says what this child is and has. A failure is logged: who has just loaded a model goes on."""
        # One at a time, or the heartbeat could overwrite a state with the one before it.
        with self._announcing:
            try:
                self._store.announce(
                    self._config.name, "child", self._describe(), NODE_TTL_BEATS * self._settings.beat_s
                )
            except RedisError as error:
                logger.warning("announcing this worker failed: %s", error)
            except Exception:
                logger.exception("announcing this worker failed")

    def _describe(self) -> dict[str, object]:
        sizes = self._drain.sizes()
        models = self._models.describe()
        return {
            "pid": os.getpid(),
            "device": self._device.kind,
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "started_at": self._started_at,
            "models": {name: state | sizes.get(name, {}) for name, state in models.items()},
            "free_mib": self._models.free_bytes // MIB,
            "idle_s": self._models.idle_s(),
        }


class _Finishing(AbstractContextManager[None]):
    """While it lasts, SIGTERM sets an event instead of ending the process.

    Celery gives a child's SIGTERM handler back its default after the pool's start-up hooks have run,
    so whoever wants to survive it must install a handler from inside the task.
    """

    def __init__(self, stopping: threading.Event) -> None:
        self._stopping = stopping
        self._previous: signal.Handlers | int | None = None

    def __enter__(self) -> None:
        self._previous = signal.signal(signal.SIGTERM, self._on_sigterm)  # type: ignore[assignment]

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGTERM, self._previous)

    def _on_sigterm(self, _signal: int, _frame: FrameType | None) -> None:
        self._stopping.set()


@cache
def the_child(app: Celery) -> Child:
    """This process's child object, made on first use."""
    return Child(app)
