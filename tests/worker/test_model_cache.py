"""The loaded-model cache: budget, least recently used first out, failures with backoff."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from backends.device import Device, current_device
from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import MIB, Settings
from worker.models import ModelCache
from worker.recorder import Recorder


def entry(name: str, memory_mib: int, runner: str = "UniformRunner", **more: Any) -> ModelEntry:
    return ModelEntry(
        name=name,
        backend="test",
        runner=f"tests.fixtures.runners:{runner}",
        tasks=("zero-shot-image-classification",),
        memory_mib=memory_mib,
        **more,
    )


def cache(*entries: ModelEntry, budget_mib: int = 100, device: Device | None = None) -> ModelCache:
    settings = Settings(model_memory_bytes=budget_mib * MIB)
    catalogue = Catalogue({each.name: each for each in entries})
    recorder = Recorder(Path(tempfile.mkdtemp()))
    return ModelCache(catalogue, device or current_device(), settings, recorder, changed=lambda: None)


def statuses(models: ModelCache) -> dict[str, str]:
    return {name: state.status for name, state in models.states.items()}


def test_a_model_is_loaded_once_and_kept() -> None:
    models = cache(entry("one", 10))
    assert models.get("one") is models.get("one")
    assert statuses(models) == {"one": "running"}


def test_the_model_used_longest_ago_leaves_when_the_budget_is_used_up() -> None:
    models = cache(entry("one", 40), entry("two", 40), entry("three", 40))
    models.get("one")
    models.get("two")
    models.get("one")
    models.get("three")
    assert statuses(models) == {"one": "running", "two": "stopped", "three": "running"}


def test_a_model_larger_than_the_budget_still_runs_alone() -> None:
    models = cache(entry("small", 10), entry("large", 500))
    models.get("small")
    models.get("large")
    assert statuses(models) == {"small": "stopped", "large": "running"}


def test_a_failing_model_says_why_and_is_not_tried_again_at_once() -> None:
    models = cache(entry("broken", 10, "BrokenRunner"), entry("fine", 10))
    with pytest.raises(ModelmillError) as first:
        models.get("broken")
    with pytest.raises(ModelmillError) as second:
        models.get("broken")
    assert first.value is second.value
    assert first.value.code is ErrorCode.MODEL_LOAD_FAILED
    assert "no such file" in (models.states["broken"].error or "")
    models.get("fine")
    assert statuses(models) == {"broken": "failed", "fine": "running"}


def test_a_stopped_model_loads_again_when_it_is_used() -> None:
    models = cache(entry("one", 10))
    before = models.get("one")
    models.unload("one")
    assert statuses(models) == {"one": "stopped"}
    assert models.get("one") is not before


def test_a_model_for_gpus_only_is_refused_on_the_cpu() -> None:
    models = cache(entry("big", 10, devices=("cuda",)), device=Device("cpu", 1))
    with pytest.raises(ModelmillError, match="runs on cuda"):
        models.get("big")


def test_unloading_gives_the_memory_back(cache_dir: Path) -> None:
    # In a process of its own: what this one holds already would hide it.
    code = (
        "import sys, tempfile; from pathlib import Path\n"
        "from backends.device import current_device, used_bytes\n"
        "from modelmill.catalogue import Catalogue; from modelmill.settings import Settings\n"
        "from worker.models import ModelCache; from worker.recorder import Recorder\n"
        "device, recorder = current_device(), Recorder(Path(tempfile.mkdtemp()))\n"
        "settings = Settings(cache_dir=Path(sys.argv[1]))\n"
        "models = ModelCache(Catalogue.load(), device, settings, recorder, lambda: None)\n"
        "models.get('minilm').answer('text-embedding', {'text': 'a cat'}); models.unload('minilm')\n"
        "first = used_bytes(device)\n"
        "models.get('minilm').answer('text-embedding', {'text': 'a cat'}); loaded = used_bytes(device)\n"
        "models.unload('minilm'); print(loaded - first, used_bytes(device) - first)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(cache_dir)], capture_output=True, text=True, check=True
    )
    taken, left = map(int, done.stdout.split())
    assert taken > 50 * MIB
    assert left < 0.2 * taken
