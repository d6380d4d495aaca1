"""The child of a node: the one process that imports runtimes, holds models and runs batches."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from functools import cache
from types import FrameType

from celery import Celery
from redis.exceptions import RedisError

from backends.device import current_device
from modelmill.broker import Bells
from modelmill.catalogue import Catalogue
from modelmill.errors import ModelmillError
from modelmill.settings import get_settings
from modelmill.store import JobStore
from worker.config import NodeConfig
from worker.drain import Drain
from worker.leases import Leases
from worker.models import ModelCache

logger = logging.getLogger(__name__)

NODE_TTL_BEATS = 5
"""Beats that a node may miss before it counts as gone."""


class Child:
    """Everything that outlives a single bell: the store, loaded models, leases and their heartbeat."""

    def __init__(self, app: Celery) -> None:
        self._settings = get_settings()
        self._device = current_device()
        catalogue = Catalogue.load(self._settings.models_file)
        self._config = NodeConfig.from_env(catalogue)
        self._store = JobStore(self._settings)
        self._bells = Bells(app)
        self._leases = Leases(self._store)
        self._models = ModelCache(catalogue, self._device, self._settings, self._announce)
        self._drain = Drain(self._settings, self._store, self._leases, self._config.name, self._device.kind)
        self._stopping = threading.Event()
        self._started_at = time.time()
        threading.Thread(target=self._pulse, name="pulse", daemon=True).start()

    def drain(self, model: str) -> None:
        """Answers a bell."""
        self._stopping.clear()
        with self._finish_on_sigterm():
            try:
                self._store.drain_started(model)
                try:
                    loaded = self._models.get(model)
                except ModelmillError as error:
                    self._drain.fail_waiting(model, error)
                    return
                if self._stopping.is_set() or self._drain.run(loaded, self._stopping):
                    self._bells.ring(model)
            except RedisError as error:
                # The reaper rings again when the store is back.
                logger.warning("drain of %s ended early: %s", model, error)
                time.sleep(1)

    def load(self, model: str) -> None:
        """Loads a model ahead of its first job."""
        with self._finish_on_sigterm():
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

    def _finish_on_sigterm(self) -> _Finishing:
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
        document = {
            "pid": os.getpid(),
            "device": self._device.kind,
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "started_at": self._started_at,
            "models": self._models.describe(),
        }
        try:
            self._store.announce(self._config.name, "child", document, NODE_TTL_BEATS * self._settings.beat_s)
        except RedisError as error:
            logger.warning("announcing this worker failed: %s", error)


class _Finishing:
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
