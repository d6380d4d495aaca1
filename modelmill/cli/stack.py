"""Job store, API and worker together on one machine, for `modelmill up` and the demo."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

from api.auth import keys_are_on
from modelmill import processes
from modelmill.cli.app import err, out
from modelmill.client import Client
from modelmill.embedded import EmbeddedServer
from modelmill.errors import ConfigError, ModelmillError
from modelmill.settings import Settings, get_settings

START_TIMEOUT_S = 120.0


class Stack:
    """The three processes. Entering starts them, leaving stops them: worker first, job store last.

    Args:
        settings: ``data_dir`` and ``shutdown_grace_s`` count here; the rest reaches the processes by
            the environment.
        say: Told what happens, a line at a time.
        log: Where the processes' output goes; to the terminal when not given.
    """

    def __init__(
        self,
        settings: Settings,
        host: str,
        port: int,
        devices: str,
        preload: str = "",
        *,
        say: Callable[[str], None],
        log: IO[bytes] | None = None,
    ) -> None:
        self._settings = settings
        # An unspecified address is where the API listens, not where it can be reached.
        self.url = f"http://{'127.0.0.1' if host in ('0.0.0.0', '::') else host}:{port}"  # noqa: S104 # nosec B104
        self._commands = {
            "API": ["api", "--host", host, "--port", str(port)],
            "worker": ["worker", "--devices", devices, "--preload", preload],
        }
        self._say = say
        self._log = log
        self._cleanup = ExitStack()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Stack:
        with ExitStack() as cleanup:
            self._say("starting the job store (embedded Valkey)")
            server = cleanup.enter_context(EmbeddedServer(self._settings.data_dir))
            cleanup.callback(self._say, "stopping the job store")
            blobs = self._settings.blob_url or str(self._settings.data_dir / "blobs")
            for name, arguments in self._commands.items():
                self._say(f"starting the {name}")
                process = processes.start(
                    processes.python("-m", "modelmill.cli", *arguments),
                    {
                        "MODELMILL_REDIS_URL": server.url,
                        "MODELMILL_BROKER_URL": server.url,
                        "MODELMILL_BLOB_URL": blobs,
                    },
                    self._log,
                )
                self._running[name] = process
                cleanup.callback(self._stop, name, process)
            self._wait_ready()
            self._cleanup = cleanup.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._cleanup.close()

    def ended(self) -> str | None:
        """The name of a process that ended by itself, if one did."""
        return next((name for name, process in self._running.items() if process.poll() is not None), None)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with Client(self.url, timeout_s=5, max_retries=0) as client:
            while time.monotonic() < deadline:
                if (name := self.ended()) is not None:
                    raise ConfigError(f"The {name} ended while starting; its output says why.")
                try:
                    if client.ready()["models"]:
                        return
                except ModelmillError:
                    pass
                time.sleep(0.1)
        raise ConfigError(f"API and worker were not ready after {START_TIMEOUT_S:.0f} s.")

    def _stop(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self._say(f"stopping the {name}")
        if not processes.stop(process, self._settings.shutdown_grace_s + 5):
            self._say(f"the {name} did not leave in time and was killed")


def run_stack(host: str, port: int, devices: str, preload: str) -> int:
    """`modelmill up`: runs until Ctrl-C or SIGTERM; 0 unless a part ended by itself."""
    stopping = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    settings = get_settings()
    # What the API would refuse later is refused before anything is started.
    keys_are_on(settings.model_copy(update={"host": host}))
    with Stack(
        settings, host, port, devices, preload, say=lambda line: err.print(f"[dim]{line}[/dim]")
    ) as stack:
        out.print(f"\nModelmill is up at [bold]{stack.url}[/bold]  (try it at {stack.url}/docs)")
        out.print(f"Jobs are kept in {settings.data_dir}. Stop with Ctrl-C.\n", highlight=False)
        while not stopping.wait(0.5):
            if (name := stack.ended()) is not None:
                err.print(f"[red]error[/red]: the {name} ended by itself; stopping the rest.")
                return 1
    return 0


def open_log(path: Path) -> IO[bytes]:
    """A file for the output of the processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")
