"""A process knows its device, also while a runtime is imported or cannot use the device."""

from __future__ import annotations

import importlib
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.settings import MIB, Settings
from modelmill_backends.contract import LoadContext
from modelmill_backends.device import Device, free_memory, torch_with_cuda, total_bytes, used_bytes
from modelmill_backends.failures import NoGpuRuntimeError
from modelmill_backends.onnx.session import open_session

CPU, GPU = Device("cpu", 1), Device("cuda", 1)


def pretend_torch(monkeypatch: pytest.MonkeyPatch, **cuda: Any) -> None:
    functions = {name: lambda *_, value=value: value for name, value in cuda.items()}
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=SimpleNamespace(**functions)))


def test_what_torch_has_allocated_is_what_is_used_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    properties = SimpleNamespace(total_memory=8000 * MIB)
    pretend_torch(monkeypatch, is_available=True, memory_allocated=5 * MIB, get_device_properties=properties)
    assert (used_bytes(GPU), total_bytes(GPU)) == (5 * MIB, 8000 * MIB)
    assert used_bytes(CPU) > 5 * MIB


def test_a_torch_for_cpus_only_is_not_asked_about_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    # Any other attribute raises an error, as in such a build.
    pretend_torch(monkeypatch, is_available=False)
    assert torch_with_cuda() is None
    assert used_bytes(GPU) == 0
    assert total_bytes(GPU) == total_bytes(CPU) > 0
    free_memory()


def test_an_onnxruntime_for_cpus_only_says_that_the_gpu_is_what_it_lacks(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    entry = ModelEntry(name="mine", backend="onnx", tasks=("text-embedding",))
    context = LoadContext(entry, GPU, Catalogue({}), Settings())
    with pytest.raises(NoGpuRuntimeError, match=r"for CPUs only: .*pip install 'modelmill\[gpu\]'"):
        open_session(tmp_path / "model.onnx", context)


def test_a_torch_that_is_being_imported_is_not_asked_about_a_gpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    half, whole = threading.Event(), threading.Event()
    monkeypatch.setattr("tests.backends.test_device.IMPORTING", (half, whole), raising=False)
    (tmp_path / "torch.py").write_text(
        "from tests.backends import test_device\n"
        "class cuda:\n"
        "    is_available = staticmethod(lambda: True)\n"
        "half, whole = test_device.IMPORTING\n"
        "half.set()\n"
        "whole.wait(30)\n"
        "cuda.memory_allocated = staticmethod(lambda: 7)\n"
    )
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    importer = threading.Thread(target=importlib.import_module, args=("torch",))
    importer.start()
    try:
        assert half.wait(30)
        # The heartbeat does the same meanwhile.
        assert used_bytes(GPU) == 0
        whole.set()
        importer.join(30)
        assert used_bytes(GPU) == 7
    finally:
        del sys.modules["torch"]
