"""The devices of nodes, and the environment that gives a node its device."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from modelmill.errors import ConfigError
from modelmill_backends.device import available_cores
from modelmill_worker.processes.supervisor import plan_devices


@pytest.fixture(autouse=True)
def _no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")


def pins(devices: str) -> list[tuple[str, str, str]]:
    return [
        (slot.label, slot.environment["MODELMILL_DEVICE"], slot.environment["CUDA_VISIBLE_DEVICES"])
        for slot in plan_devices(devices)
    ]


def test_each_gpu_gets_a_node_that_sees_only_it() -> None:
    assert pins("0,1") == [("cuda0", "cuda", "0"), ("cuda1", "cuda", "1")]
    assert pins("GPU-5f3c") == [("cudaGPU-5f3c", "cuda", "GPU-5f3c")]


def install(
    monkeypatch: pytest.MonkeyPatch, folder: Path, torch_cuda: str | None, *distributions: str
) -> None:
    """Pretends that only PyTorch, built for ``torch_cuda``, and these distributions are installed."""
    (folder / "torch").mkdir()
    (folder / "torch" / "__init__.py").write_text("raise SystemExit('imported by the supervisor')\n")
    (folder / "torch" / "version.py").write_text(
        f"from typing import Optional\ncuda: Optional[str] = {torch_cuda!r}\nhip: Optional[str] = None\n"
    )
    for name in distributions:
        metadata = folder / f"{name.replace('-', '_')}-1.0.dist-info" / "METADATA"
        metadata.parent.mkdir()
        metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    monkeypatch.setattr(sys, "path", [str(folder)])


@pytest.mark.parametrize(
    ("torch_cuda", "distributions"),
    [("12.8", ()), ("12.8", ("onnxruntime",)), (None, ("onnxruntime-gpu",))],
)
def test_all_means_every_visible_gpu_or_else_the_cpu(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, torch_cuda: str | None, distributions: tuple[str, ...]
) -> None:
    install(monkeypatch, tmp_path, torch_cuda, *distributions)
    assert pins("all") == [("cpu0", "cpu", "")]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    assert pins("all") == [("cuda0", "cuda", "2"), ("cuda1", "cuda", "5")]


def test_all_means_the_cpu_where_nothing_installed_can_use_the_gpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, tmp_path, None, "onnxruntime")
    assert pins("all") == [("cpu0", "cpu", "")]
    assert not caplog.messages
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert pins("all") == [("cpu0", "cpu", "")]
    (message,) = caplog.messages
    assert "1 GPU(s) found" in message
    assert "modelmill[gpu]" in message
    # A GPU that the user names is taken as it is.
    assert pins("0") == [("cuda0", "cuda", "0")]


def test_cpu_nodes_share_the_cores_and_see_no_gpu() -> None:
    slots = plan_devices("cpu:2")
    assert [slot.label for slot in slots] == ["cpu0", "cpu1"]
    assert {slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots} == {""}
    assert {slot.environment["OMP_NUM_THREADS"] for slot in slots} == {str(max(1, available_cores() // 2))}


def test_a_gpu_and_the_cpu_can_be_mixed() -> None:
    assert [label for label, *_ in pins("0,cpu")] == ["cuda0", "cpu0"]


@pytest.mark.parametrize("devices", ["", ",", "gpu", "cpu:x", "cpux", "0,one", "cpu:0"])
def test_nonsense_is_refused(devices: str) -> None:
    with pytest.raises(ConfigError, match="--devices"):
        plan_devices(devices)
