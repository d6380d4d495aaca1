"""The parent of a node: announces it, reaps, rings lost bells, and passes SIGTERM on.

It imports no runtime.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.worker import state
from redis.exceptions import RedisError

from modelmill import __version__
from modelmill.broker import LOAD, Bells
from modelmill.settings import Settings
from modelmill.store import WorkerStore
from modelmill_backends.device import DEVICE_VARIABLE
from modelmill_worker.child_state import Recorder
from modelmill_worker.config import NodeConfig, state_folder
from modelmill_worker.processes.child import NODE_TTL_BEATS
from modelmill_worker.processes.watchdog import Watchdog

logger = logging.getLogger(__name__)

WATCH_S = 0.2
"""How often the watchdog checks the child."""


class Parent:
    """The periodic work of a node, in a thread beside Celery's own loop."""

    def __init__(self, app: Celery, settings: Settings, config: NodeConfig) -> None:
        self._settings = settings
        self._config = config
        self._store = WorkerStore(settings)
        self._bells = Bells(app, self._store.release_bell)
        self._child_pids: Callable[[], list[int]] = list
        self._left = threading.Event()
        self._watchdog = Watchdog(settings, self._store, Recorder(state_folder()))
        self._started_at = time.time()

    def start(self, child_pids: Callable[[], list[int]]) -> None:
        """The node takes work from now on. ``child_pids`` returns the process ids of its pool."""
        self._child_pids = child_pids
        for model in self._config.preload:
            self._bells.order(LOAD, model, self._config.name)
        self._announce_and_reap()
        threading.Thread(target=self._run, name="parent", daemon=True).start()

    def shutting_down(self) -> None:
        """Tells the child to stop, again and again until it has.

        Celery waits for the running task, and only the child can shorten it.
        """
        threading.Thread(target=self._stop_child, name="shutdown", daemon=True).start()

    def leave(self) -> None:
        """The node has ended: removes it from the list of nodes."""
        self._left.set()
        try:
            self._store.retire(self._config.name)
        except RedisError as error:
            logger.warning("taking this node off the list failed: %s", error)

    def _run(self) -> None:
        reap_at = 0.0
        while not self._left.wait(WATCH_S):
            try:
                self._watchdog.check()
            except RedisError as error:
                logger.warning("the jobs of a dead process could not be returned yet: %s", error)
            except Exception:
                logger.exception("watching the child failed")
            if time.monotonic() >= reap_at:
                reap_at = time.monotonic() + self._settings.reap_s
                self._announce_and_reap()

    def _announce_and_reap(self) -> None:
        try:
            self._announce()
        except RedisError as error:
            # A server at its memory limit refuses this, and still reaps.
            logger.warning("announcing this node failed: %s", error)
        try:
            reaped = self._store.reap()
        except RedisError as error:
            logger.warning("the job store does not answer: %s", error)
            return
        except Exception:
            logger.exception("reaping failed")
            return
        if reaped.returned:
            logger.warning("returned %d jobs whose worker stopped responding", reaped.returned)
        for model in reaped.bells:
            self._bells.ring(model)

    def _announce(self) -> None:
        document: dict[str, Any] = {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "device": os.environ.get(DEVICE_VARIABLE, "cpu"),
            "cuda_visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
            "models": self._config.models,
            "started_at": self._started_at,
            "version": __version__,
        }
        # This runs more often than the heartbeat, so a live node never expires.
        self._store.announce(self._config.name, "parent", document, NODE_TTL_BEATS * self._settings.beat_s)

    def _stop_child(self) -> None:
        while not self._left.wait(0.2):
            # Between two tasks, SIGTERM would end the child at once. It has nothing to finish then.
            if not state.active_requests:
                continue
            for pid in self._child_pids():
                try:
                    os.kill(pid, signal.SIGTERM)
                except ProcessLookupError:
                    continue
