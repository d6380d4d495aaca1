"""`modelmill demo`, which `make demo` runs."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

from modelmill import processes


def test_the_demo_classifies_a_real_photo_and_leaves_nothing_running(cache_dir: Path) -> None:
    command = processes.python("-m", "modelmill_cli", "demo")
    environment = {"MODELMILL_CACHE_DIR": str(cache_dir)}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    assert "cat" in done.stdout
    assert "0.99" in done.stdout
    probabilities = json.loads(done.stdout[done.stdout.index("{") :])["probabilities"]
    assert len(probabilities) == 10
    assert probabilities[0] > 0.9
    for step in (
        "starting the job store",
        "starting the API",
        "starting the worker",
        "submitting",
        "stopped",
    ):
        assert step in done.stderr
    left = subprocess.run(["pgrep", "-f", "modelmill-demo-"], capture_output=True, text=True)
    assert left.stdout == ""
