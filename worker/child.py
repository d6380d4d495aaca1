"""The child of a node: the one process that imports runtimes, holds models and runs batches."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from contextlib import AbstractContextManager
from functools import cache
from types import FrameType

from celery import Celery
from redis.exceptions import RedisError

from backends.device import current_device
from modelmill.broker import DRAIN, Bells
from modelmill.catalogue import Catalogue
from modelmill.errors import ModelmillError
from modelmill.settings import MIB, get_settings
from modelmill.store import JobStore
from tasks.registry import all_tasks
from worker.config import NodeConfig, state_folder
from worker.drain import Drain
from worker.leases import Leases
from worker.models import ModelCache
from worker.placement import Demand, better_node
from worker.recorder import Recorder
from worker.work import DeviceLostError

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
        self._store = JobStore(self._settings)
        self._bells = Bells(app, self._store.unring)
        self._leases = Leases(self._store)
        self._models = ModelCache(
            self._catalogue, self._device, self._settings, self._recorder, self._announce
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
        threading.Thread(target=self._pulse, name="pulse", daemon=True).start()

    def drain(self, model: str, *, passed_on: bool = False) -> None:
        """Answers a bell; one that another node passed on is not passed on again."""
        with self._until_sigterm():
            try:
                self._store.unring(model)
                if not passed_on and (node := self._somebody_better(model)):
                    self._store.send_away(node)
                    self._bells.order(DRAIN, model, node, passed_on=True)
                    return
                started, was_loaded = time.monotonic(), self._models.is_loaded(model)
                try:
                    loaded = self._models.get(model)
                except ModelmillError as error:
                    self._drain.fail_waiting(model, error)
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
            try:
                self._store.load_began(model)
                self._models.get(model)
            except ModelmillError:
                return  # logged and announced by the cache
            except RedisError as error:
                logger.warning("loading %s: %s", model, error)

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

    def _somebody_better(self, model: str) -> str | None:
        if self._models.is_loaded(model):
            return None
        entry = self._catalogue[model]
        demand = Demand(
            model,
            backlog=self._store.depth(model),
            rate=self._store.rate(model),
            max_batch=entry.max_batch or self._settings.max_batch,
            memory_mib=entry.memory_mib or 0,
        )
        nodes = self._store.nodes()
        return better_node(demand, self._config.name, nodes, self._settings.spread_after_s)

    def _until_sigterm(self) -> AbstractContextManager[None]:
        self._stopping.clear()
        return _Finishing(self._stopping)

    def _pulse(self) -> None:
        while True:
            time.sleep(self._settings.beat_s)
            try:
                self._leases.beat()
                self._announce()
            except Exception:
                # This thread keeps the leases: nothing may end it.
                logger.exception("heartbeat failed")

    def _announce(self) -> None:
        sizes = self._drain.sizes()
        models = self._models.describe()
        document = {
            "pid": os.getpid(),
            "device": self._device.kind,
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "started_at": self._started_at,
            "models": {name: state | sizes.get(name, {}) for name, state in models.items()},
            "free_mib": self._models.free_bytes // MIB,
            "idle_s": self._models.idle_s(),
        }
        try:
            self._store.announce(self._config.name, "child", document, NODE_TTL_BEATS * self._settings.beat_s)
        except RedisError as error:
            logger.warning("announcing this worker failed: %s", error)


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
