"""Celery, in one place: the application object and the bells.

A Celery message carries no job. It is a bell, which says that a model has jobs. The jobs themselves
wait in the job store. So if a bell is lost, doubled or late, only latency changes; the reaper sends a
lost one again.
"""

from __future__ import annotations

import importlib
import logging
import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

from celery import Celery
from celery.loaders.app import AppLoader
from kombu import Queue

from modelmill.settings import Settings

logger = logging.getLogger(__name__)

DRAIN, LOAD, UNLOAD = "modelmill.drain", "modelmill.load", "modelmill.unload"

MAX_WAITING_BELLS = 32
"""Bells that may wait in one queue. Without a limit, a queue that no worker serves would grow; one bell
is enough."""


def model_queue(model: str) -> str:
    """The queue of a model's bells, consumed by every node that serves it."""
    return f"modelmill.model.{model}"


def node_queue(node: str) -> str:
    """The queue of one node, for a bell or an order to this node only."""
    return f"modelmill.node.{node}"


class Loader(AppLoader):
    """Celery's loader, but it imports no modules from the working directory.

    Celery's own loader puts that directory first on ``sys.path`` while it imports. A user's own file there,
    such as ``celery.py`` or ``redis.py``, would then hide the package of the same name.
    """

    def import_from_cwd(self, module: str, imp: Any = None, package: str | None = None) -> Any:
        return importlib.import_module(module, package)


def make_celery(settings: Settings) -> Celery:
    """The Celery application, for the API, which sends bells, and for workers."""
    app = Celery("modelmill", broker=settings.effective_broker_url, loader=Loader)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        # Results live in the job store.
        task_ignore_result=True,
        # Acknowledge early: a bell that runs twice does no harm, but one that comes back for hours does.
        task_acks_late=False,
        task_default_queue="modelmill",
        # A last resort for hangs that the parent does not see. A drain may take this long for claimed
        # jobs, and then prepare items and run a batch.
        task_time_limit=settings.load_timeout_s + settings.longest_drain_s + 3 * settings.batch_timeout_s,
        worker_disable_prefetch=True,
        worker_prefetch_multiplier=1,
        # A fresh interpreter for each child: the parent has threads, and a fork would copy their locks.
        worker_pool_start_method="spawn",
        worker_concurrency=1,
        worker_hijack_root_logger=False,
        worker_proc_alive_timeout=60,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        # A Redis at its memory limit refuses Celery's messages. A node must live through that.
        broker_channel_error_retry=True,
        broker_transport_options={
            # One list for each queue instead of four.
            "priority_steps": [0],
            "socket_timeout": 10,
            "socket_connect_timeout": 2,
            "health_check_interval": 25,
        },
    )
    return app


class NotSentError(Exception):
    """A message was not sent: the broker failed, or too many already wait for the same receiver."""


@dataclass(frozen=True, slots=True)
class _Message:
    name: str
    model: str
    queue_name: str
    passed_on: bool
    sent: Future[None]


class Bells:
    """Sends Celery messages from a thread of its own, so that callers do not wait for the broker.

    A bell that cannot be sent is dropped with a warning: the reaper of some process sends it again. A
    caller that needs to know uses the future that ``order`` returns.

    Args:
        app: Celery's application.
        release_bell: Called for the model of a bell that was not sent, so that a process whose broker
            answers may send one at once.
    """

    def __init__(self, app: Celery, release_bell: Callable[[str], object]) -> None:
        self._app = app
        self._release_bell = release_bell
        self._pending: queue.Queue[_Message | None] = queue.Queue(maxsize=1000)
        self._thread = threading.Thread(target=self._run, name="bells", daemon=True)
        self._thread.start()

    def ring(self, model: str) -> None:
        """Wakes a worker for ``model``."""
        self._put(DRAIN, model, model_queue(model))

    def order(self, name: str, model: str, node: str, *, passed_on: bool = False) -> Future[None]:
        """Sends ``LOAD``, ``UNLOAD`` or ``DRAIN`` for ``model`` to one node.

        ``passed_on`` marks a bell that came from another node. It is not passed on again.

        Returns:
            A future that is done when the message is sent, or has a ``NotSentError``. If it is
            cancelled before, the message is not sent.
        """
        return self._put(name, model, node_queue(node), passed_on=passed_on)

    def close(self) -> None:
        """Sends the pending messages, for at most two seconds."""
        try:
            self._pending.put_nowait(None)
        except queue.Full:
            return
        self._thread.join(timeout=2)

    def _put(self, name: str, model: str, queue_name: str, *, passed_on: bool = False) -> Future[None]:
        message = _Message(name, model, queue_name, passed_on, Future())
        try:
            self._pending.put_nowait(message)
        except queue.Full:
            logger.warning("too many bells are waiting to be sent; dropped one for model %s", model)
            message.sent.set_exception(NotSentError("too many messages are waiting to be sent"))
        return message.sent

    def _run(self) -> None:
        while (message := self._pending.get()) is not None:
            if not message.sent.set_running_or_notify_cancel():
                continue
            try:
                self._send(message)
            except Exception as error:
                logger.warning("the bell for model %s was not sent: %s", message.model, error)
                message.sent.set_exception(NotSentError(str(error)))
                self._release(message.model)
            else:
                message.sent.set_result(None)

    def _send(self, message: _Message) -> None:
        if self._waiting(message.queue_name) >= MAX_WAITING_BELLS:
            if message.name == DRAIN:
                return  # the waiting bells are enough
            raise NotSentError(f"{MAX_WAITING_BELLS} messages are waiting for that worker")
        arguments = [message.model, True] if message.passed_on else [message.model]
        self._app.send_task(
            message.name, args=arguments, queue=message.queue_name, retry=False, ignore_result=True
        )

    def _release(self, model: str) -> None:
        try:
            self._release_bell(model)
        except Exception as error:
            logger.warning("no process can send a bell for model %s for some seconds: %s", model, error)

    def _waiting(self, queue_name: str) -> int:
        pool: Any = self._app.pool
        with pool.acquire(block=True, timeout=5) as connection:
            channel = connection.default_channel
            try:
                declared: Any = channel.queue_declare(queue_name, passive=True)
            except connection.channel_errors:  # no such queue yet
                return 0
            return int(declared.message_count)


def queues_for(models: list[str], node: str) -> list[Queue]:
    """The queues that a node consumes: those of its models, and its own."""
    # Plain Redis lists with the names of the queues. Without topic routing, a node leaves nothing to
    # clean up.
    return [Queue(name, routing_key=name) for name in [node_queue(node), *map(model_queue, models)]]
