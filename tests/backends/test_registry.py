from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from backends.registry import all_runners, find_runner
from modelmill.catalogue import Catalogue


def test_every_catalogued_model_has_a_runner_for_each_of_its_tasks(catalogue: Catalogue) -> None:
    for entry in catalogue.values():
        for task in entry.tasks:
            assert find_runner(entry, task).task == task


def test_the_runners_of_both_runtimes_are_found() -> None:
    tasks = {"zero-shot-image-classification", "image-classification", "text-embedding"}

    assert {task for backend, task, _ in all_runners() if backend == "onnx"} == tasks
    assert {task for backend, task, _ in all_runners() if backend == "transformers"} == tasks


def test_finding_runners_imports_no_runtime() -> None:
    code = (
        "import json, sys\n"
        "from backends.registry import all_runners\n"
        "all_runners()\n"
        "heavy = ('torch', 'transformers', 'onnxruntime', 'tokenizers', 'numpy', 'PIL')\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))\n"
    )
    root = Path(__file__).parents[2]

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True, timeout=60
    )

    assert json.loads(done.stdout) == []
