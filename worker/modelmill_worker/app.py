"""The Celery application of a node.

``modelmill worker`` starts it once per device, through ``modelmill_worker.node``, and starts it again if it
ends. ``celery -A modelmill_worker.app worker`` starts it too: then one node, with no supervisor.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import sys
from functools import partial
from types import FrameType
from typing import Any

from celery.apps.worker import Worker
from celery.signals import (
    setup_logging,
    worker_init,
    worker_process_init,
    worker_process_shutdown,
    worker_ready,
    worker_shutdown,
    worker_shutting_down,
)

from modelmill.broker import DRAIN, LOAD, UNLOAD, make_celery, queues_for
from modelmill.catalogue import Catalogue
from modelmill.errors import ConfigError
from modelmill.logs import configure_logging
from modelmill.settings import Settings, get_settings
from modelmill.start_checks import check_start
from modelmill_worker import metrics
from modelmill_worker.checks import check_settings
from modelmill_worker.config import STATE_VARIABLE, NodeConfig, state_folder
from modelmill_worker.processes.child import child_leaves, the_child
from modelmill_worker.processes.parent import Parent

logger = logging.getLogger(__name__)


def _configure() -> tuple[Settings, NodeConfig]:
    """Reads the environment. If something cannot be used, prints one sentence and ends the process.

    Status 2 tells the supervisor that a restart cannot help.
    """
    try:
        settings = get_settings()
        config = NodeConfig.from_env(Catalogue.load(settings.models_file))
        if not os.environ.get(STATE_VARIABLE):
            # This is the parent. It makes both folders before the child starts, and the environment names
            # them to it.
            check_settings(settings)
            state_folder()
            if settings.metrics_port is not None:
                metrics.prepare_directory()
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        raise SystemExit(2) from None
    return settings, config


_settings, _config = _configure()
_parent: Parent | None = None

app = make_celery(_settings)
app.conf.worker_consumer = "modelmill_worker.processes.consumer:PatientConsumer"
app.conf.task_queues = queues_for(list(_config.models), _config.name)


class _Worker(Worker):
    """Celery's worker, without its restart on SIGHUP.

    Celery would replace the process by a new one in the same environment. That names a folder which the old
    process has removed: the new node would be announced, and would end no job.
    """

    def install_platform_tweaks(self, worker: Any) -> None:
        super().install_platform_tweaks(worker)
        signal.signal(signal.SIGHUP, _on_hangup)


def _on_hangup(_number: int, _frame: FrameType | None) -> None:
    # Not by a logger: the signal may come while this thread holds its lock.
    os.write(2, b"SIGHUP is ignored. The supervisor, `modelmill worker`, starts its nodes again on SIGHUP.\n")


vars(app)["Worker"] = app.subclass_with_self(_Worker)  # in place of the cached property


def node_name() -> str:
    """This node's unique name."""
    return _config.name


@app.task(name=DRAIN)
def drain(model: str, passed_on: bool = False) -> None:
    """A bell: ``model`` has jobs."""
    _safely(partial(the_child(app).drain, passed_on=passed_on), model)


@app.task(name=LOAD)
def load(model: str) -> None:
    """An order to load ``model``."""
    _safely(the_child(app).load, model)


@app.task(name=UNLOAD)
def unload(model: str) -> None:
    """An order to unload ``model``."""
    _safely(the_child(app).unload, model)


def _safely(act: Any, model: str) -> None:
    # No exception leaves a task: a MemoryError that leaves one ends the whole node.
    try:
        act(model)
    except Exception:
        logger.exception("a task on model %s ended with an unexpected error", model)


@setup_logging.connect
def _set_up_logging(**_: Any) -> None:
    configure_logging(_settings.log_level)


@worker_init.connect
def _check_store(**_: Any) -> None:
    try:
        check_start(_settings)
    except ConfigError as error:
        sys.stderr.write(f"error: {error}\n")
        # Celery would only log a ConfigError. Status 2 tells the supervisor that a restart cannot help.
        raise SystemExit(2) from None


@worker_process_init.connect
def _child_started(**_: Any) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    the_child(app)


@worker_process_shutdown.connect
def _child_leaves(**_: Any) -> None:
    child_leaves(app)


@worker_ready.connect
def _node_ready(sender: Any, **_: Any) -> None:
    global _parent
    _parent = Parent(app, _settings, _config)
    _parent.start(lambda: sender.pool.info["processes"])
    if _settings.metrics_port is not None:
        metrics.start_server(_settings.metrics_port)


@worker_shutting_down.connect
def _node_shutting_down(**_: Any) -> None:
    if _parent is not None:
        _parent.shutting_down()


@worker_shutdown.connect
def _node_left(**_: Any) -> None:
    if _parent is not None:
        _parent.leave()
        shutil.rmtree(state_folder(), ignore_errors=True)
