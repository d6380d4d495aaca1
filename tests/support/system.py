"""The whole system as a user starts it: `modelmill up` in a process of its own."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from modelmill import processes
from tests.support.processes import wait_until

PROXY = {"HTTP_PROXY": "http://127.0.0.1:9", "http_proxy": "http://127.0.0.1:9"}
AWKWARD = {
    **PROXY,
    "ALL_PROXY": "socks5://127.0.0.1:9",
    "NO_PROXY": "localhost,::1/128",
    "SSL_CERT_FILE": "/gone",
    "HOME": "/gone/home",
    "TMPDIR": "/gone/tmp",
    "LC_ALL": "POSIX",
    "PYTHONIOENCODING": "ascii",
}
"""An environment that stops other programs: `modelmill up` and the commands work in it."""


@dataclass
class Up:
    """A running `modelmill up`."""

    url: str
    process: subprocess.Popen[bytes]
    log: Path


def start_up(folder: Path, cache_dir: Path, *options: str) -> Up:
    """Starts `modelmill up` on a free port, with its data in ``folder``."""
    port = processes.free_port()
    log = folder / f"up-{port}.log"
    command = processes.python("-m", "modelmill_cli", "up", "--data-dir", str(folder / "data"))
    environment = {"MODELMILL_CACHE_DIR": str(cache_dir), "MODELMILL_PORT": str(port)}
    with log.open("ab") as output:
        process = processes.start([*command, *options], environment, output)
    host = "[::1]" if "::1" in options else "127.0.0.1"
    up = Up(f"http://{host}:{port}", process, log)
    wait_until(lambda: "Modelmill is up" in log.read_text() or process.poll() is not None, 60, "modelmill up")
    assert process.poll() is None, log.read_text()
    return up


def up_to_end(*options: str) -> subprocess.CompletedProcess[str]:
    """Runs a `modelmill up` that ends by itself."""
    command = processes.python("-m", "modelmill_cli", "up", *options)
    return subprocess.run(command, capture_output=True, text=True, timeout=60)
