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
    """Cores that this process may run on, which in a container or under taskset is not all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def torch_with_cuda() -> Any | None:
    """PyTorch, if this process has imported it and it can use a GPU. Imports nothing by itself."""
    torch = sys.modules.get("torch")
    # Another thread may be importing it: then its name is there, and half of the rest.
    if torch is None or getattr(getattr(torch, "__spec__", None), "_initializing", False):
        return None
    cuda = getattr(torch, "cuda", None)
    return torch if cuda is not None and cuda.is_available() else None


def used_bytes(device: Device) -> int:
    """Memory of the device that this process uses: resident memory, or what torch has allocated on a GPU.

    0 for a GPU as long as torch has not been imported: it has allocated nothing, and of others nobody knows.
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
    """Tells Python's garbage collector that what is there now stays.

    Modules and a loaded model are hundreds of thousands of objects. To look through them all takes the
    collector tens of milliseconds, again and again, in which no job gets on.
    """
    gc.freeze()


def free_memory() -> None:
    """Gives back what was freed in this process: to the device, and to the machine."""
    # A model's own cycles are among what was to stay.
    gc.unfreeze()
    gc.collect()
    gc.freeze()
    if (torch := torch_with_cuda()) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    with suppress(OSError, AttributeError):
        # glibc keeps freed pages for itself unless it is asked.
        ctypes.CDLL(None).malloc_trim(0)
