"""Starts one node per device and keeps them running.

The environment of a node names its device before the node starts. So no library in it can see another node's
GPU, or take memory on it.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path
from types import FrameType

from modelmill import processes
from modelmill.errors import ConfigError
from modelmill.settings import Settings
from modelmill_backends.device import DEVICE_VARIABLE, available_cores
from modelmill_worker.config import (
    MODELS_VARIABLE,
    NODE_VARIABLE,
    PRELOAD_VARIABLE,
    STATE_VARIABLE,
    TASKS_VARIABLE,
)

logger = logging.getLogger(__name__)

FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 0.5, 30.0
"""Wait before a node is started again. Each failure doubles it."""
GPU_ADVICE = "install PyTorch for CUDA, or modelmill[gpu] in place of the CPU's onnxruntime."
HEALTHY_AFTER_S = 60.0
"""After a node ran this long, its earlier failures no longer count."""


@dataclass(frozen=True, slots=True)
class Slot:
    """The device of one node.

    Attributes:
        label: For example ``cuda0`` or ``cpu1``; part of the node's name.
        environment: The variables that give the node this device.
    """

    label: str
    environment: dict[str, str]


def plan_devices(devices: str) -> list[Slot]:
    """Returns the slots for ``--devices``.

    Args:
        devices: ``all`` (every visible GPU; the CPU if there is no GPU or no installed runtime can use it),
            GPU numbers or UUIDs such as ``0,1``, ``cpu``, or ``cpu:2`` for two nodes that share the cores.
            These can be mixed: ``0,cpu``.

    Raises:
        ConfigError: the text is none of these.
    """
    names = [name.strip() for name in devices.split(",") if name.strip()]
    if names == ["all"]:
        names = [str(index) for index in range(len(_usable_gpus()))] or ["cpu"]
    gpus = [name for name in names if not name.startswith("cpu")]
    cpus = sum(_cpu_count(name) for name in names if name.startswith("cpu"))
    if not gpus and not cpus:
        raise ConfigError("--devices names no device; use all, 0,1, cpu or cpu:2")
    visible = visible_gpus() if gpus else []
    slots = []
    for name in gpus:
        if not (name.isdigit() or name.startswith(("GPU-", "MIG-"))):
            raise ConfigError(f"--devices: {name!r} is neither a GPU's number, its UUID, cpu nor all")
        # As in CUDA itself, a number is an index into CUDA_VISIBLE_DEVICES.
        physical = visible[int(name)] if name.isdigit() and int(name) < len(visible) else name
        slots.append(Slot(f"cuda{name}", {"CUDA_VISIBLE_DEVICES": physical, DEVICE_VARIABLE: "cuda"}))
    threads = str(max(1, available_cores() // max(cpus, 1)))
    for index in range(cpus):
        # An empty list hides every GPU from a node on the CPU.
        slots.append(
            Slot(
                f"cpu{index}",
                {"CUDA_VISIBLE_DEVICES": "", DEVICE_VARIABLE: "cpu", "OMP_NUM_THREADS": threads},
            )
        )
    return slots


def visible_gpus() -> list[str]:
    """The GPUs that CUDA would see, by number or UUID. Imports no runtime."""
    allowed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if allowed is not None:
        return [name.strip() for name in allowed.split(",") if name.strip()]
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listing = subprocess.run(  # noqa: S603 - a fixed command
            [tool, "--query-gpu=index", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=30,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in listing.stdout.splitlines() if line.strip()]


def can_use_gpus() -> bool:
    """Whether a runtime that can use a GPU is installed. Imports no runtime."""
    return _is_installed("onnxruntime-gpu") or _torch_has_gpus()


def _usable_gpus() -> list[str]:
    gpus = visible_gpus()
    if gpus and not can_use_gpus():
        logger.warning(
            "%d GPU(s) found that no installed runtime can use; running on the CPU. To use them, %s",
            len(gpus),
            GPU_ADVICE,
        )
        return []
    return gpus


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _torch_has_gpus() -> bool:
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return False
    try:
        text = Path(spec.origin).with_name("version.py").read_text(encoding="utf-8")
    except OSError:
        return False
    # PyTorch's build writes: cuda: Optional[str] = '12.8', or None. For AMD's GPUs it writes hip.
    return re.search(r"^(cuda|hip)\b[^=\n]*=\s*['\"]", text, re.MULTILINE) is not None


def _cpu_count(name: str) -> int:
    kind, _, count = name.partition(":")
    if kind != "cpu" or (count and not count.isdigit()):
        raise ConfigError(f"--devices: {name!r} should be cpu or cpu:N")
    return int(count or 1)


@dataclass
class _Node:
    slot: Slot
    name: str
    metrics_port: int | None = None
    process: subprocess.Popen[bytes] | None = None
    started_at: float = 0.0
    restart_at: float = 0.0
    failures: int = field(default=0)


class Supervisor:
    """Runs nodes until it is told to stop.

    A node that ends by itself is started again, after a wait that doubles with each failure.
    """

    def __init__(
        self,
        settings: Settings,
        slots: Sequence[Slot],
        *,
        models: Sequence[str] = (),
        tasks: Sequence[str] = (),
        preload: Sequence[str] = (),
        name: str | None = None,
    ) -> None:
        self._settings = settings
        self._stopping = threading.Event()
        self._renewing = threading.Event()
        """The handler of SIGHUP sets it, ``run`` reads it."""
        self._misconfigured = False
        base = name or f"{socket.gethostname()}-{os.getpid()}"
        self._nodes = [
            _Node(
                slot=slot,
                name=f"{base}-{slot.label}",
                metrics_port=settings.metrics_port and settings.metrics_port + index,
            )
            for index, slot in enumerate(slots)
        ]
        self._environment = {
            MODELS_VARIABLE: ",".join(models),
            TASKS_VARIABLE: ",".join(tasks),
            PRELOAD_VARIABLE: ",".join(preload),
        }

    def run(self) -> int:
        """Blocks until SIGTERM or SIGINT. Returns 0 if every node left within its grace time, else 1.

        On SIGHUP it starts its nodes again, one after another, so that they read the models file again. If it
        runs on a terminal, SIGHUP means that the terminal was closed, and stops it.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        processes.on_hangup(self._on_signal if sys.stdin.isatty() else self._on_hangup)
        while not self._stopping.wait(0.2):
            if self._renewing.is_set():
                self._renew()
            for node in self._nodes:
                self._start_if_down(node)
        clean = self._stop()
        return 0 if clean and not self._misconfigured else 1

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping.set()

    def _on_hangup(self, _number: int, _frame: FrameType | None) -> None:
        self._renewing.set()

    def _renew(self) -> None:
        """Starts each node again. The others work meanwhile."""
        self._renewing.clear()
        logger.info("SIGHUP: starting the nodes again, one after another")
        for node in self._nodes:
            if node.process is None or self._stopping.is_set():
                continue
            if not processes.stop(node.process, self._settings.shutdown_grace_s):
                logger.error("node %s did not leave within its grace time and was killed", node.name)
            self._start(node)

    def _start_if_down(self, node: _Node) -> None:
        now = time.monotonic()
        if node.process is None:
            if now >= node.restart_at:
                self._start(node)
            return
        status = node.process.poll()
        if status is None:
            return
        node.process = None
        if status == 2:
            # The configuration is wrong, so starting again cannot help.
            logger.error("node %s cannot start; see above", node.name)
            self._misconfigured = True
            self._stopping.set()
            return
        if now - node.started_at > HEALTHY_AFTER_S:
            node.failures = 0
        backoff_s = min(FIRST_BACKOFF_S * 2**node.failures, LONGEST_BACKOFF_S)
        node.failures += 1
        node.restart_at = now + backoff_s
        logger.warning(
            "node %s ended with status %d; starting it again in %.1f s", node.name, status, backoff_s
        )

    def _start(self, node: _Node) -> None:
        # PYTHONSAFEPATH is -P for the child that the node starts: see node.py.
        environment = {
            **self._environment,
            **node.slot.environment,
            NODE_VARIABLE: node.name,
            "PYTHONSAFEPATH": "1",
            STATE_VARIABLE: "",  # each node makes its own folder
            "MODELMILL_METRICS_PORT": str(node.metrics_port or ""),
        }
        node.started_at = time.monotonic()
        node.process = processes.start(processes.python("-m", "modelmill_worker.node"), environment)
        logger.info("started node %s, pid %d", node.name, node.process.pid)

    def _stop(self) -> bool:
        running = [node for node in self._nodes if node.process is not None]
        for node in running:
            if node.process is not None:
                node.process.terminate()
        deadline = time.monotonic() + self._settings.shutdown_grace_s
        clean = True
        for node in running:
            if node.process is None:
                continue
            try:
                node.process.wait(timeout=max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                logger.error("node %s did not leave within its grace time; killing it", node.name)
                clean = False
                node.process.kill()
                node.process.wait()
        return clean
