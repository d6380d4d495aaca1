"""The device of this process: the only place that chooses one.

A worker node serves exactly one device. It is pinned by ``CUDA_VISIBLE_DEVICES`` before the process
starts, so inside it a GPU is always number 0.
"""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

DEVICE_VARIABLE = "MODELMILL_DEVICE"


@dataclass(frozen=True, slots=True)
class Device:
    """Where forward passes run.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        threads: Threads that a runtime may use on the CPU.
    """

    kind: Literal["cpu", "cuda"]
    threads: int

    @property
    def torch_name(self) -> str:
        return "cuda:0" if self.kind == "cuda" else "cpu"


def current_device() -> Device:
    """The device that the environment gives this process: ``MODELMILL_DEVICE`` is ``cpu`` or ``cuda``."""
    kind: Literal["cpu", "cuda"] = "cuda" if os.environ.get(DEVICE_VARIABLE) == "cuda" else "cpu"
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return Device(kind, int(threads) if threads.isdigit() and int(threads) else available_cores())


def available_cores() -> int:
    """Cores that this process may run on: in a container or under taskset, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_with_cuda() -> Any | None:
    """PyTorch, if this process has imported it and it can use a GPU. Imports nothing itself."""
    torch = sys.modules.get("torch")
    # While another thread imports it, the module is there but incomplete.
    if torch is None or getattr(getattr(torch, "__spec__", None), "_initializing", False):
        return None
    cuda = getattr(torch, "cuda", None)
    return torch if cuda is not None and cuda.is_available() else None


def used_bytes(device: Device) -> int:
    """Memory of the device that this process uses: resident memory, or what torch has allocated on a GPU.

    0 for a GPU while torch is not imported: what other libraries allocate there is not known.
    """
    if device.kind == "cuda":
        torch = torch_with_cuda()
        return 0 if torch is None else int(torch.cuda.memory_allocated())
    with Path("/proc/self/statm").open(encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def total_bytes(device: Device) -> int:
    """Memory of the device: the GPU's, or what the machine or the container allows."""
    if device.kind == "cuda" and (torch := torch_with_cuda()) is not None:
        return int(torch.cuda.get_device_properties(0).total_memory)
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit = Path("/sys/fs/cgroup/memory.max")
    try:
        return min(machine, int(limit.read_text()))
    except (OSError, ValueError):
        return machine


def keep_memory() -> None:
    """Tells Python's garbage collector to skip all objects that exist now.

    Modules and a loaded model are hundreds of thousands of objects. Each time the collector looks through
    all of them, it takes tens of milliseconds, and no job makes progress meanwhile.
    """
    gc.freeze()


def free_memory() -> None:
    """Gives memory that this process has freed back to the device and to the machine."""
    # The freed model may contain reference cycles, which ``keep_memory`` told the collector to skip.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    if (torch := torch_with_cuda()) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        # glibc keeps freed pages for the process unless it is asked to return them.
        ctypes.CDLL(None).malloc_trim(0)
