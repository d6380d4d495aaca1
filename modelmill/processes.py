"""Starts processes that end together with this one, and finds ports for them."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import IO

PR_SET_PDEATHSIG = 1  # linux/prctl.h
OPEN_FILES = 65_536


def allow_many_files() -> None:
    """Raises the limit of open files for this process as far as allowed: each client of a server is one.

    The usual soft limit is 1024; it is low for the sake of programs that use ``select``.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def start(
    command: Sequence[str],
    environment: Mapping[str, str] | None = None,
    log: IO[bytes] | None = None,
    folder: Path | None = None,
    text: str = "",
) -> subprocess.Popen[bytes]:
    """Starts a process in a session of its own, so that Ctrl-C reaches only this process, which then
    stops the other.

    On Linux, the started process gets a SIGTERM if this process dies without stopping it.

    Args:
        command: Program and arguments.
        environment: Variables that are added to those of this process.
        log: The file for its output; None for the output of this process.
        folder: Its working directory; None for that of this process.
        text: The text at its standard input, at most a few kilobytes.
    """
    process = subprocess.Popen(  # noqa: S603 - callers pass programs of this project
        list(command),
        cwd=folder,
        env=os.environ | dict(environment or {}),
        stdin=subprocess.PIPE if text else subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=_end_with_parent if sys.platform == "linux" else None,
    )
    if process.stdin is not None:
        # A process that has ended already reads nothing; its status says why.
        with process.stdin as standard_input, suppress(BrokenPipeError):
            standard_input.write(text.encode())
    return process


def on_hangup(act: Callable[[int, FrameType | None], object]) -> None:
    """Calls ``act`` on SIGHUP, unless this process was told to ignore it, as ``nohup`` does."""
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        signal.signal(signal.SIGHUP, act)


def stop(process: subprocess.Popen[bytes], grace_s: float) -> bool:
    """Sends SIGTERM, and SIGKILL after ``grace_s``. Returns whether SIGTERM was enough."""
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
    """A command of this interpreter. ``-P`` keeps the working directory off ``sys.path``."""
    return [sys.executable, "-P", *arguments]


def free_port() -> int:
    """A TCP port that was free on loopback a moment ago."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
