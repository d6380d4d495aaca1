from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import modelmill_backends
from modelmill.catalogue import Catalogue, ModelEntry
from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends import registry
from modelmill_backends.noop.zero_shot_image_classification import NoopRunner
from modelmill_backends.onnx.text_embedding import TextEmbeddingRunner
from modelmill_backends.registry import all_runners, find_runner, prepare
from modelmill_tasks.registry import all_tasks
from tests.support.models import ZERO_SHOT

ROOT = Path(__file__).parents[2]
CACHES = (registry.all_runners, registry._built_in, registry._plugins, registry._modules)


class PluginRunner(NoopRunner):
    backend = "third-party"


class RivalRunner(NoopRunner):
    """A runner with the backend, task and name of a built-in one."""


@pytest.fixture
def forgetful() -> Iterator[None]:
    """A registry with empty caches, which are emptied again after the test."""
    for cached in CACHES:
        cached.cache_clear()
    yield
    for cached in CACHES:
        cached.cache_clear()


@pytest.fixture
def plug_in(forgetful: None, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``plug_in("module:Class", …)`` installs entry points in the group of runners."""

    def install(*values: str) -> None:
        points = [EntryPoint(value, value, registry.ENTRY_POINT_GROUP) for value in values]
        monkeypatch.setattr("modelmill.entry_points.entry_points", lambda **_: points)

    return install


def an_entry(backend: str, runner: str = "default", task: str = ZERO_SHOT) -> ModelEntry:
    return ModelEntry(name="some-model", backend=backend, runner=runner, tasks=(task,))


def modules_after(code: str) -> list[str]:
    """The modules that a new process has imported after it ran ``code``."""
    code += "\nimport json, sys\nprint(json.dumps(list(sys.modules)))\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    names: list[str] = json.loads(done.stdout)
    return names


def test_every_catalogued_model_has_a_runner_for_each_of_its_tasks(catalogue: Catalogue) -> None:
    for entry in catalogue.values():
        for task in entry.tasks:
            assert find_runner(entry, task).task == task


def test_the_runners_of_both_runtimes_are_found() -> None:
    tasks = {"zero-shot-image-classification", "image-classification", "text-embedding"}

    assert tasks <= {task for backend, task, _ in all_runners() if backend == "onnx"}
    assert tasks <= {task for backend, task, _ in all_runners() if backend == "transformers"}


def test_every_task_has_a_runner() -> None:
    assert {task for _, task, _ in all_runners()} >= all_tasks().keys()


def test_finding_runners_imports_no_runtime() -> None:
    imported = modules_after("from modelmill_backends.registry import all_runners; all_runners()")

    heavy = {"torch", "transformers", "onnxruntime", "tokenizers", "numpy", "PIL"}
    assert heavy.isdisjoint(imported)


def test_finding_one_runner_imports_no_other_backend() -> None:
    imported = modules_after(
        "from modelmill_backends.registry import find_runner\n"
        "from modelmill.catalogue import Catalogue\n"
        "find_runner(Catalogue.load()['efficientnet-lite0'], 'image-classification')"
    )

    assert "modelmill_backends.onnx.image_classification" in imported
    assert not {
        name
        for name in imported
        if name.startswith(("modelmill_backends.transformers.", "modelmill_backends.onnx.text"))
    }


def test_preparing_imports_the_runners_of_all_models_and_no_runtime() -> None:
    imported = modules_after(
        "from modelmill_backends.registry import prepare\n"
        "from modelmill.catalogue import Catalogue\n"
        "prepare(Catalogue.load().values())"
    )

    assert {"modelmill_backends.onnx.conse", "modelmill_backends.onnx.text_embedding"} <= set(imported)
    assert {"torch", "transformers", "onnxruntime", "numpy"}.isdisjoint(imported)


def test_no_two_built_in_runners_are_called_the_same() -> None:
    classes = {
        runner
        for name in registry._modules()
        for runner in registry._runners_of(__import__(name, fromlist=["_"]))
    }

    assert Counter((runner.backend, runner.task, runner.name) for runner in classes).most_common(1)[0][1] == 1


def test_a_runner_is_found_in_a_module_with_any_name(
    forgetful: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a_new_file.py").write_text(
        "from modelmill_backends.noop.zero_shot_image_classification import NoopRunner\n"
        "class Another(NoopRunner):\n"
        "    backend = 'brand-new'\n"
        "    name = 'another'\n"
    )
    monkeypatch.setattr(modelmill_backends, "__path__", [*modelmill_backends.__path__, str(tmp_path)])

    assert find_runner(an_entry("brand-new", "another"), ZERO_SHOT).__name__ == "Another"
    assert ("brand-new", ZERO_SHOT, "another") in all_runners()
    del sys.modules["modelmill_backends.a_new_file"]


@pytest.mark.parametrize("value", [f"{__name__}:PluginRunner", __name__])
def test_a_plugin_s_runner_is_found_by_its_class_or_its_module(plug_in: Any, value: str) -> None:
    plug_in(value)

    assert find_runner(an_entry("third-party"), ZERO_SHOT) is PluginRunner
    assert all_runners()["third-party", ZERO_SHOT, "default"] is PluginRunner


def test_a_plugin_replaces_no_built_in_runner(plug_in: Any) -> None:
    plug_in(f"{__name__}:RivalRunner")

    assert find_runner(an_entry("noop"), ZERO_SHOT) is NoopRunner
    assert all_runners()["noop", ZERO_SHOT, "default"] is NoopRunner


def test_a_broken_plugin_does_not_disturb_models_that_do_not_need_it(plug_in: Any) -> None:
    plug_in("no_such_module:Runner")

    assert find_runner(an_entry("onnx", task="text-embedding"), "text-embedding") is TextEmbeddingRunner
    prepare([an_entry("third-party"), an_entry("noop", "no_such_module:Runner")])
    with pytest.raises(ModelmillError) as caught:
        find_runner(an_entry("third-party"), ZERO_SHOT)
    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED
    assert "(no_such_module:Runner) is left out: ModuleNotFoundError: No module named" in caught.value.message


def test_one_broken_plugin_leaves_out_no_other(plug_in: Any) -> None:
    plug_in("no_such_module:Runner", f"{__name__}:PluginRunner", "json:no_such_name")

    assert find_runner(an_entry("third-party"), ZERO_SHOT) is PluginRunner


def test_a_runner_that_is_not_there_is_answered_with_those_that_are(catalogue: Catalogue) -> None:
    with pytest.raises(ModelmillError) as caught:
        find_runner(an_entry("onnx", "clop"), ZERO_SHOT)

    assert caught.value.code is ErrorCode.MODEL_LOAD_FAILED
    assert caught.value.message == (
        "Model some-model: no runner 'clop' of backend 'onnx' answers zero-shot-image-classification. "
        "There are: noop zero-shot-image-classification default, "
        "onnx zero-shot-image-classification conse, onnx zero-shot-image-classification default, "
        "transformers zero-shot-image-classification default."
    )
