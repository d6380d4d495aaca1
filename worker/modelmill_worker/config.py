"""The configuration of one node: its name, the models it serves and the folder of its files.

All of it comes from the environment. The supervisor (``modelmill worker``) sets these variables; a Procfile
or a unit file can set them too.
"""

from __future__ import annotations

import os
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path

from modelmill.catalogue import Catalogue
from modelmill.errors import ConfigError
from modelmill_backends.device import DEVICE_VARIABLE
from modelmill_tasks.registry import all_tasks

NODE_VARIABLE = "MODELMILL_NODE"
MODELS_VARIABLE = "MODELMILL_WORKER_MODELS"
TASKS_VARIABLE = "MODELMILL_WORKER_TASKS"
PRELOAD_VARIABLE = "MODELMILL_PRELOAD"
STATE_VARIABLE = "MODELMILL_STATE_DIR"


@dataclass(frozen=True, slots=True)
class NodeConfig:
    """What one node serves.

    Attributes:
        name: Unique among all live nodes.
        models: The tasks that it serves, by model name.
        preload: Models that it loads at start.
    """

    name: str
    models: dict[str, tuple[str, ...]]
    preload: tuple[str, ...]

    @classmethod
    def from_env(cls, catalogue: Catalogue) -> NodeConfig:
        """Reads the environment.

        Raises:
            ConfigError: a variable names a model that is not in the catalogue or a task that does not exist;
                or the node would serve no model.
        """
        # The child is a fresh interpreter: the environment passes the parent's name on to it.
        name = os.environ.get(NODE_VARIABLE, "").strip() or f"{socket.gethostname()}-{os.getpid()}"
        os.environ[NODE_VARIABLE] = name
        _check_device()
        wanted = _names(MODELS_VARIABLE)
        tasks = _names(TASKS_VARIABLE)
        preload = _names(PRELOAD_VARIABLE)
        for variable, names in ((MODELS_VARIABLE, wanted), (PRELOAD_VARIABLE, preload)):
            if unknown := [model for model in names if model not in catalogue]:
                raise ConfigError(f"{variable} names unknown models: {', '.join(unknown)}")
        if unknown := [task for task in tasks if task not in all_tasks()]:
            raise ConfigError(f"{TASKS_VARIABLE} names unknown tasks: {', '.join(unknown)}")
        models = {
            model: tuple(task for task in entry.tasks if not tasks or task in tasks)
            for model, entry in catalogue.items()
            if not wanted or model in wanted
        }
        served = {model: answered for model, answered in models.items() if answered}
        if not served:
            raise ConfigError("None of the models that this worker serves answers one of its tasks.")
        return cls(name, served, tuple(preload))


def state_folder() -> Path:
    """The folder that a node's parent and child share. Each node has its own, on its host."""
    if not os.environ.get(STATE_VARIABLE):
        os.environ[STATE_VARIABLE] = tempfile.mkdtemp(prefix="modelmill-node-")
    return Path(os.environ[STATE_VARIABLE])


def _check_device() -> None:
    kind = os.environ.get(DEVICE_VARIABLE, "").strip().lower() or "cpu"
    if kind not in ("cpu", "cuda"):
        raise ConfigError(f"{DEVICE_VARIABLE} must be cpu or cuda.")
    os.environ[DEVICE_VARIABLE] = kind


def _names(variable: str) -> list[str]:
    return [name.strip() for name in os.environ.get(variable, "").split(",") if name.strip()]
