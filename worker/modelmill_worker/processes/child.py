"""The child of a node: the one process that imports runtimes, holds models and runs batches."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import AbstractContextManager, contextmanager, suppress
from functools import cache
from types import FrameType

from celery import Celery
from redis.exceptions import RedisError

from modelmill.broker import DRAIN, Bells, NotSentError
from modelmill.catalogue import Catalogue
from modelmill.errors import ModelmillError
from modelmill.settings import MIB, get_settings
from modelmill.store import WorkerStore
from modelmill_backends.device import current_device
from modelmill_tasks.registry import all_tasks
from modelmill_worker.child_state import Recorder
from modelmill_worker.config import NodeConfig, state_folder
from modelmill_worker.drain.batches import DeviceLostError
from modelmill_worker.drain.context import DrainContext
from modelmill_worker.drain.drain import Drain
from modelmill_worker.drain.leases import Leases
from modelmill_worker.models.cache import ModelCache
from modelmill_worker.models.placement import Demand, better_node, other_node

logger = logging.getLogger(__name__)

LOOK_S = 5.0
"""How often an idle child looks for jobs that no bell announced. A lost bell is sent again sooner."""
SEND_S = 10.0
"""How long the child waits for the broker to take a bell."""
NODE_TTL_BEATS = 5
"""Heartbeats that a node may miss before it counts as gone."""


class Child:
    """What a child keeps between two bells: the store, the loaded models, the leases and their heartbeat."""

    def __init__(self, app: Celery) -> None:
        self._settings = get_settings()
        # Imports the tasks now, and not when the first job is opened.
        all_tasks()
        self._device = current_device()
        self._catalogue = Catalogue.load(self._settings.models_file)
        self._config = NodeConfig.from_env(self._catalogue)
        self._recorder = Recorder(state_folder())
        self._recorder.start_file()
        self._store = WorkerStore(self._settings)
        self._bells = Bells(app, self._store.release_bell)
        self._leases = Leases(self._store)
        self._models = ModelCache(
            self._catalogue, self._device, self._settings, self._recorder, self._announce, self._store
        )
        self._drain = Drain(
            DrainContext(
                settings=self._settings,
                store=self._store,
                leases=self._leases,
                recorder=self._recorder,
                node=self._config.name,
                device=self._device.kind,
                served=self._config.models,
            )
        )
        self._stopping = threading.Event()
        """The handler of SIGTERM sets it, the start of a task clears it. All threads of a drain read it."""
        self._turn = threading.Lock()
        """Held while this process answers a bell or an order: by Celery's thread, or by the lookout."""
        self._leaving = threading.Event()
        self._idle_since = time.monotonic()
        """When the last task ended. Written by the thread that holds the turn."""
        self._started_at = time.time()
        self._announcing = threading.Lock()
        threading.Thread(target=self._look_out, name="lookout", daemon=True).start()
        threading.Thread(target=self._heartbeat, name="heartbeat", daemon=True).start()

    def drain(self, model: str, *, passed_on: bool = False) -> None:
        """Answers a bell. If another node passed it on, it is passed on again only if loading fails here."""
        with self._until_sigterm(), self._taking_turns():
            self._answer(model, passed_on=passed_on)

    def _answer(self, model: str, *, passed_on: bool) -> None:
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
            # The reaper rings again once the store answers.
            logger.warning("drain of %s ended early: %s", model, error)
            time.sleep(1)
        except DeviceLostError as error:
            # Only a new process can use the device again. The parent returns the jobs.
            logger.critical("the device is lost, ending this process: %s", error)
            os._exit(70)

    def load(self, model: str) -> None:
        """Loads a model ahead of its first job."""
        with self._until_sigterm(), self._taking_turns():
            with suppress(ModelmillError):  # logged and announced by the cache
                self._models.get(model)
            try:
                # Only now that this node has announced the load. Otherwise the order would vanish in between.
                self._store.clear_model_starting(model)
            except RedisError as error:
                logger.warning("loading %s: %s", model, error)
            self._leave_if_pinned()

    def unload(self, model: str) -> None:
        """Frees a model's memory."""
        with self._taking_turns():
            self._models.unload(model)
            self._leave_if_pinned()

    def _look_out(self) -> None:
        """Answers bells that cannot be sent, as long as this process lives.

        A broker at its memory limit takes no messages, and it may be the Redis of the job store. The jobs
        that were accepted before must end all the same.
        """
        while not self._leaving.wait(LOOK_S):
            try:
                while self._answer_all_unsent():
                    pass
            except RedisError as error:
                logger.warning("looking for waiting jobs failed: %s", error)
            except Exception:
                logger.exception("looking for waiting jobs failed")

    def _overlooked(self) -> list[str]:
        """Models whose jobs wait although this process is idle."""
        if self._turn.locked() or self._leaving.is_set():
            return []
        idle_s = time.monotonic() - self._idle_since
        return self._store.waiting(self._config.models) if idle_s >= LOOK_S else []

    def _answer_all_unsent(self) -> bool:
        """Returns whether one was answered, so that another look is worth it."""
        answered = [self._answer_unsent(model) for model in self._overlooked()]
        return any(answered)

    def _answer_unsent(self, model: str) -> bool:
        """Sends a bell for ``model`` to this node. If the broker does not take it, answers it at once.

        Returns whether it was answered.
        """
        try:
            self._bells.order(DRAIN, model, self._config.name).result(SEND_S)
        except (NotSentError, FutureTimeoutError):
            pass
        else:
            return False
        if not self._turn.acquire(blocking=False):
            return False
        try:
            logger.warning("no bell can be sent for the jobs of %s; running them without one", model)
            self._stopping.clear()
            if not self._leaving.is_set():
                self._answer(model, passed_on=True)
        finally:
            self._turn.release()
        return True

    def _leave_if_pinned(self) -> None:
        if self._models.pinned:
            logger.warning("ending this process, to free memory that an unloaded model still holds")
            self._drain.release_held()
            self._bells.close()
            # No job is claimed between two tasks, and the pool starts another process.
            os._exit(0)

    def leave(self) -> None:
        """The process ends, between two tasks: gives back the jobs whose results could not be written."""
        self._leaving.set()
        self._stopping.set()
        # The lookout may be in a batch.
        self._turn.acquire(timeout=self._settings.shutdown_grace_s)
        self._drain.release_held()

    @contextmanager
    def _taking_turns(self) -> Iterator[None]:
        with self._turn:
            try:
                yield
            finally:
                self._idle_since = time.monotonic()

    def _cannot_load(self, model: str, error: ModelmillError, passed_on: bool) -> None:
        """Leaves the jobs to a node that may load the model. If there is none, they fail with the reason."""
        if self._models.pinned:
            # A fresh process may have the memory to load it.
            self._bells.ring(model)
            self._leave_if_pinned()
            return
        # A bell that was passed on goes only to nodes where loading has not failed, so not in circles.
        demand, nodes = self._demand(model), self._store.nodes()
        if node := other_node(demand, self._config.name, nodes, retry=not passed_on):
            self._pass_on(model, node)
        else:
            self._drain.fail_waiting(model, error, self._stopping)

    def _pass_on(self, model: str, node: str) -> None:
        self._store.send_away(node)
        self._bells.order(DRAIN, model, node, passed_on=True)

    def _is_wanted_here(self, model: str, passed_on: bool) -> bool:
        """Whether to load the model here.

        False if the bell was passed on to a better node, or no jobs are left.
        """
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
        return _StopOnSigterm(self._stopping)

    def _heartbeat(self) -> None:
        # The previous child's announcement is out of date.
        self._announce()
        while True:
            time.sleep(self._settings.beat_s)
            try:
                self._leases.renew()
            except Exception:
                # Without this thread the leases run out, so no error may end it.
                logger.exception("heartbeat failed")
            self._announce()

    def _announce(self) -> None:
        """Tells the store what this child is and which models it has. A failure is only logged."""
        # Serialised, so that the heartbeat cannot overwrite a newer state.
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
        sizes = self._drain.measurements.sizes()
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


class _StopOnSigterm(AbstractContextManager[None]):
    """Inside this context, SIGTERM sets an event instead of ending the process.

    Celery resets a child's SIGTERM handler after the start-up hooks of the pool have run, so the task itself
    must install the handler.
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
    """This process's child object, made at the first call."""
    return Child(app)


def child_leaves(app: Celery) -> None:
    """This process ends. Does nothing if it never made its child object."""
    if the_child.cache_info().currsize:
        the_child(app).leave()
