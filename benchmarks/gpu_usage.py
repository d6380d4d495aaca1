"""How busy the GPU is while something runs."""

from __future__ import annotations

import importlib
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from types import TracebackType
from typing import Any

PAUSE_S = 0.1


class GpuUsage:
    """Samples, while it is entered, the share of time in which the GPU that PyTorch sees first ran a kernel.

    It uses NVML if ``nvidia-ml-py`` is installed, otherwise ``nvidia-smi``. Without both, and on the CPU, it
    measures nothing. A kernel that leaves most of the GPU idle counts as busy too: a low share means that
    the GPU waits, but a high share does not mean that it cannot do more.

    Args:
        device: ``cuda`` or ``cpu``.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._samples: list[tuple[float, float]] = []
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> GpuUsage:
        if self._device == "cuda":
            name = _gpu_name()
            if read := _nvml_reader(name):
                self._start(partial(self._poll, read))
            elif tool := shutil.which("nvidia-smi"):
                self._process = _watching(tool, name)
                self._start(partial(self._listen, self._process))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
        if self._thread is not None:
            self._thread.join(timeout=5)

    def busy(self, since: float, until: float) -> float | None:
        """Mean of the samples between two times, in seconds since the epoch; 1 is always busy."""
        inside = [share for at, share in self._samples if since <= at <= until]
        return statistics.mean(inside) if inside else None

    def _start(self, run: Callable[[], None]) -> None:
        self._thread = threading.Thread(target=run, name="gpu-usage", daemon=True)
        self._thread.start()

    def _poll(self, read: Callable[[], float]) -> None:
        while not self._stopping.wait(PAUSE_S):
            self._samples.append((time.time(), read()))

    def _listen(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout as lines:
            for line in lines:
                # A GPU that is shared out in slices says [N/A].
                if line.strip().isdigit():
                    self._samples.append((time.time(), int(line) / 100))


def _watching(tool: str, name: str) -> subprocess.Popen[str]:
    query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
    return subprocess.Popen(
        [tool, "-i", name, *query, f"--loop-ms={PAUSE_S * 1000:.0f}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )


def _gpu_name() -> str:
    """The UUID: NVML's numbers know nothing of CUDA_VISIBLE_DEVICES."""
    import torch

    properties: Any = torch.cuda.get_device_properties(0)
    return "GPU-" + str(properties.uuid).removeprefix("GPU-")


def _nvml_reader(name: str) -> Callable[[], float] | None:
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        handle = nvml.nvmlDeviceGetHandleByUUID(name)
        nvml.nvmlDeviceGetUtilizationRates(handle)
    except Exception:
        # Not installed, no driver, or a GPU that gives no figure. Then nvidia-smi may give one.
        return None
    return lambda: float(nvml.nvmlDeviceGetUtilizationRates(handle).gpu) / 100
