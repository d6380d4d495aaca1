"""The cache of loaded models: its budget, which model it evicts, and waits after failures."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import MIB, Settings
from modelmill.store import WorkerStore
from modelmill_backends.device import Device, current_device
from modelmill_worker.child_state import LoadDeaths, Recorder
from modelmill_worker.models.cache import ModelCache
from tests.fixtures.loading import HungryRunner
from tests.fixtures.runners import UniformRunner


def entry(name: str, memory_mib: int | None, runner: str = "UniformRunner", **more: Any) -> ModelEntry:
    return ModelEntry(
        name=name,
        backend="test",
        runner=runner if ":" in runner else f"tests.fixtures.runners:{runner}",
        tasks=("zero-shot-image-classification",),
        memory_mib=memory_mib,
        **more,
    )


def cache(
    *entries: ModelEntry,
    budget_mib: int = 100,
    device: Device | None = None,
    recorder: Recorder | None = None,
    store: WorkerStore | None = None,
) -> ModelCache:
    settings = Settings(model_memory_bytes=budget_mib * MIB)
    catalogue = Catalogue({each.name: each for each in entries})
    recorder = recorder or Recorder(Path(tempfile.mkdtemp()))
    return ModelCache(catalogue, device or current_device(), settings, recorder, lambda: None, store)


@pytest.fixture(autouse=True)
def _without_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    """These models have no weights, and a full collection in this process takes a second.

    ``test_unloading_gives_the_memory_back`` frees real memory, in a process of its own.
    """
    monkeypatch.setattr("modelmill_worker.models.cache.free_memory", lambda: None)
    monkeypatch.setattr("modelmill_worker.models.cache.keep_memory", lambda: None)


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The MiB in use on the device, one value for each question. The last value stays."""
    values: list[int] = [0]

    def pop(_: Device) -> int:
        return (values.pop(0) if len(values) > 1 else values[0]) * MIB

    monkeypatch.setattr("modelmill_worker.models.cache.used_bytes", pop)
    return values


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


def test_a_failing_model_rests_longer_each_time_and_then_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr("modelmill_worker.models.cache.time.monotonic", lambda: now)
    models = cache(entry("broken", 10, "BrokenRunner"))
    error: ModelmillError | None = None
    for rest_s in (5, 10, 20, 40, 80, 160, 300, 300):
        with pytest.raises(ModelmillError) as tried:
            models.get("broken")
        assert tried.value is not error
        error = tried.value
        # Its cause would keep alive the parts of the model that were loaded.
        assert error.__cause__ is error.__context__ is None
        assert models.rests("broken")
        assert models.describe()["broken"]["retry_in_s"] == rest_s
        now += rest_s - 0.01
        with pytest.raises(ModelmillError) as rested:
            models.get("broken")
        assert rested.value is error
        now += 0.02
        assert not models.rests("broken")
        assert models.describe()["broken"]["retry_in_s"] == 0
    monkeypatch.setattr("tests.fixtures.runners.BrokenRunner.load", UniformRunner.load)
    models.get("broken")
    assert statuses(models) == {"broken": "running"}
    assert "retry_in_s" not in models.describe()["broken"]


def test_deaths_of_processes_are_forgotten_once_a_model_loads(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path)
    recorder.write_load_deaths(
        {"one": LoadDeaths(2), "two": LoadDeaths(3, time.monotonic() + 60), "other": LoadDeaths(1)}
    )
    models = cache(entry("one", 10), entry("two", 10), recorder=recorder)
    models.get("one")
    with pytest.raises(ModelmillError, match="died 3 times"):
        models.get("two")
    assert models.rests("two")
    assert recorder.load_deaths().keys() == {"two", "other"}


def test_what_a_model_takes_is_measured_and_known_to_the_next_worker(
    store: WorkerStore, used: list[int]
) -> None:
    used[:] = [10, 70]
    models = cache(entry("large", None), entry("small", 50), store=store)
    assert models.estimate_mib("large") == 0
    models.get("large")
    assert models.states["large"].memory_mib == 60
    # The store keeps batch sizes of the model too.
    store.remember_sizing("large", models._device.kind, {"best": 4})
    following = cache(entry("large", None), entry("small", 50), store=store)
    used[:] = [10]
    following.get("small")
    assert following.estimate_mib("large") == 60
    following.get("large")
    assert statuses(following) == {"small": "stopped", "large": "running"}
    assert following.free_bytes == 40 * MIB
    assert store.recall_sizing("large", models._device.kind) == {"best": 4}
    assert cache(entry("large", 30), store=store).estimate_mib("large") == 30, "the entry counts"


def test_memory_that_runs_out_while_loading_is_taken_from_the_models_used_longest_ago(
    monkeypatch: pytest.MonkeyPatch, used: list[int]
) -> None:
    hungry = "tests.fixtures.loading:HungryRunner"
    monkeypatch.setattr(HungryRunner, "places", 2)
    models = cache(*(entry(name, None, hungry) for name in ("one", "two", "three")), entry("tiny", None))
    for name in ("one", "tiny", "two"):
        models.get(name)
    # Before; before and after the eviction; before the second attempt, and after it.
    used[:] = [50, 50, 20, 20, 60]
    models.get("three")
    assert models.states["three"].memory_mib == 40
    assert statuses(models) == {"one": "stopped", "tiny": "running", "two": "running", "three": "running"}
    monkeypatch.setattr(HungryRunner, "places", -5)
    with pytest.raises(ModelmillError, match="MemoryError"):
        models.get("one")
    assert statuses(models) == {"one": "failed"} | dict.fromkeys(("tiny", "two", "three"), "stopped")


def test_a_model_whose_runtime_cannot_use_the_gpu_runs_on_the_cpu(
    used: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    no_gpu = "tests.fixtures.loading:NoGpuRunner"
    models = cache(
        entry("either", 10, no_gpu), entry("strict", 10, no_gpu, devices=("cuda",)), device=Device("cuda", 1)
    )
    assert models.get("either").context.device == Device("cpu", 1)
    assert models.describe()["either"]["device"] == "cpu"
    assert models.free_bytes == 100 * MIB
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        "the runtime is for CPUs only. Until then it runs on the CPU"
    ]
    models.unload("either")
    assert not models.pinned
    with pytest.raises(ModelmillError, match="for CPUs only"):
        models.get("strict")


def test_a_model_for_the_cpu_only_runs_on_the_host_of_a_gpu_and_takes_none_of_its_memory(
    used: list[int],
) -> None:
    speech = entry("speech", 90, devices=("cpu",))
    models = cache(speech, entry("vision", 90), entry("sound", 90), device=Device("cuda", 3))
    models.get("speech")
    models.get("vision")
    assert models.get("speech").context.device == Device("cpu", 3)
    assert statuses(models) == {"vision": "running", "speech": "running"}
    assert models.free_bytes == 10 * MIB
    models.get("sound")
    assert statuses(models) == {"vision": "stopped", "speech": "running", "sound": "running"}


def test_a_model_that_leaves_its_memory_behind_on_a_gpu_is_noticed(used: list[int]) -> None:
    models = cache(entry("clean", None), entry("leaking", None), device=Device("cuda", 1))
    used[:] = [0, 40]
    models.get("clean")
    used[:] = [40, 0]
    models.unload("clean")
    assert not models.pinned
    used[:] = [0, 40]
    models.get("leaking")
    used[:] = [40, 30]
    models.unload("leaking")
    assert models.pinned


def test_a_stopped_model_loads_again_when_it_is_used() -> None:
    models = cache(entry("one", 10))
    before = models.get("one")
    models.unload("one")
    assert statuses(models) == {"one": "stopped"}
    assert models.get("one") is not before


def test_a_model_for_gpus_only_is_refused_on_the_cpu() -> None:
    models = cache(entry("big", 90, devices=("cuda",)), entry("other", 90), device=Device("cpu", 1))
    models.get("other")
    with pytest.raises(ModelmillError, match="runs on cuda"):
        models.get("big")
    assert statuses(models) == {"other": "running", "big": "failed"}, "nothing was evicted for it"


def test_unloading_gives_the_memory_back(cache_dir: Path) -> None:
    # In a process of its own: memory that this process already has would hide it.
    code = (
        "import sys, tempfile; from pathlib import Path\n"
        "from modelmill_backends.device import current_device, used_bytes\n"
        "from modelmill.catalogue import Catalogue; from modelmill.settings import Settings\n"
        "from modelmill_worker.models.cache import ModelCache\n"
        "from modelmill_worker.child_state import Recorder\n"
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
