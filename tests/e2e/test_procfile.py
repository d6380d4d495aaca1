"""The Procfile, started by honcho."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from modelmill import processes
from modelmill.client import Client
from modelmill.settings import Settings
from modelmill_tasks.shared.examples import CAT
from tests.support.paths import REPOSITORY
from tests.support.processes import wait_until
from tests.support.servers import environment_of


def test_the_procfile_runs_api_and_worker(settings: Settings, tmp_path: Path) -> None:
    port = processes.free_port()
    url = f"http://127.0.0.1:{port}"
    scripts = Path(sys.executable).parent
    environment = os.environ | environment_of(settings)
    environment |= {"PORT": str(port), "PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}"}
    with (tmp_path / "honcho.log").open("wb") as log:
        command = [str(scripts / "honcho"), "start", "-f", str(REPOSITORY / "Procfile")]
        process = subprocess.Popen(
            command, cwd=tmp_path, env=environment, stdout=log, stderr=log, start_new_session=True
        )
    try:

        def ready() -> bool:
            try:
                return bool(httpx.get(f"{url}/health/ready").json()["models"])
            except httpx.HTTPError:
                return False

        wait_until(ready, 60, "API and worker")
        with Client(url) as client:
            inputs = {"image": CAT, "classes": ["cat", "dog"]}
            result = client.run("zero-shot-image-classification", "noop", inputs, timeout_s=30)
        assert result == {"probabilities": [0.5, 0.5]}
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health/live")
