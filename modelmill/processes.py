"""Starting processes that do not outlive us, and finding ports for them."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OPEN_FILES = 65_536


def allow_many_files() -> None:
    """Raises this process's limit of open files as far as it may, for a server: each client is one.

    The usual soft limit is 1024, kept low for programs that use ``select``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def start(
    command: Sequence[str], environment: Mapping[str, str] | None = None, log: IO[bytes] | None = None
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, so that Ctrl-C reaches only us and we stop it in order.

    On Linux it is sent SIGTERM if we die without stopping it.

    Args:
        command: Program and arguments.
        environment: Variables on top of ours.
        log: Where its output goes; to ours when not given.
    """
    return subprocess.Popen(  # noqa: S603 - callers pass programs of this project
        list(command),
        env=os.environ | dict(environment or {}),
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )


def stop(process: subprocess.Popen[bytes], grace_s: float) -> bool:
    """SIGTERM, and SIGKILL after ``grace_s``; whether the process left by itself."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    return True


def python(*arguments: str) -> list[str]:
    """A command of our interpreter. ``-P`` keeps the working directory off ``sys.path``."""
    return [sys.executable, "-P", *arguments]


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
