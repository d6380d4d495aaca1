"""Waits for other processes, and ends them."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from contextlib import suppress

import psutil


def wait_until(condition: Callable[[], object], timeout_s: float = 30.0, what: str = "condition") -> None:
    """Waits until the condition is true, and fails after ``timeout_s``."""
    deadline, pause_s = time.monotonic() + timeout_s, 0.001
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come within {timeout_s} s"
        time.sleep(pause_s)
        # Soon at first, for servers in this process. Later seldom, for processes that take seconds to start.
        pause_s = min(2 * pause_s, 0.05)


def is_running(pid: int) -> bool:
    """Whether a process runs. A zombie does not: it has ended, and its parent has not yet read its status."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """Kills a process and all that it started."""
    with suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        for each in family:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        wait_until(lambda: not any(is_running(each.pid) for each in family), what="the end of a process")
    process.wait()
