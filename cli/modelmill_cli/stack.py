"""Job store, API and worker on one machine, for `modelmill up` and `modelmill demo`."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType, TracebackType
from typing import IO

import httpx

from modelmill import http_client, processes
from modelmill.embedded import EmbeddedServer
from modelmill.errors import ConfigError
from modelmill.folders import make_folder
from modelmill.settings import Settings, get_settings
from modelmill_api.checks import check_settings
from modelmill_cli.addresses import free_port_of, listens, url_of
from modelmill_cli.console import err, out
from modelmill_cli.joining import BLOB_FOLDER
from modelmill_cli.models_file import check_models_file
from modelmill_worker.checks import check_settings as check_worker_settings

START_TIMEOUT_S = 120.0
READY_TIMEOUT_S = 2.0
"""The time limit for one request while the API starts. During a request, a signal to stop has no effect."""


class Stack:
    """The three processes, as a context. It starts them, and stops them in order: worker, API, job store.

    Args:
        settings: The stack uses ``data_dir``, ``shutdown_grace_s`` and ``blob_url``. The processes read the
            rest from the environment.
        host: The address at which the API listens.
        port: The port at which the API listens; 0 for any free one.
        devices: The devices of the worker.
        preload: The models that the worker loads at start.
        say: Called with a line for each thing that happens.
        log: The file for the output of the processes; the terminal if None.
        stopping: If it is set, also during the start, the stack starts no further process and does not wait
            for the others.

    Raises (on entering):
        ConfigError: the port is taken, or a part does not start.
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
        stopping: threading.Event | None = None,
    ) -> None:
        self._settings = settings
        self._host, self._port = host, port
        self._worker_command = ["worker", "--devices", devices, "--preload", preload]
        self.url = ""
        self._stopping = stopping or threading.Event()
        self._say = say
        self._log = log
        self._cleanup = ExitStack()
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def __enter__(self) -> Stack:
        data_dir = self._settings.needed_data_dir
        # Checked first: another program at this port would answer instead of our API.
        self._port = free_port_of(self._host, self._port)
        self.url = url_of(self._host, self._port)
        commands = {
            "API": ["api", "--host", self._host, "--port", str(self._port)],
            "worker": self._worker_command,
        }
        with ExitStack() as cleanup:
            self._say("starting the job store (embedded Valkey)")
            server = cleanup.enter_context(_store_in(data_dir, self._stopping))
            cleanup.callback(self._say, "stopping the job store")
            blobs = self._settings.blob_url or str(data_dir / BLOB_FOLDER)
            for name, arguments in commands.items():
                if self._stopping.is_set():
                    break
                self._say(f"starting the {name}")
                process = processes.start(
                    processes.python("-m", "modelmill_cli", *arguments),
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
        """The name of a process that ended by itself; None if all run."""
        return next((name for name, process in self._running.items() if process.poll() is not None), None)

    def _wait_ready(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        with http_client.make_client(self.url, direct=True, timeout=READY_TIMEOUT_S) as client:
            while time.monotonic() < deadline:
                if self._stopping.wait(0.1):
                    return
                if (name := self.ended()) is not None:
                    raise ConfigError(f"The {name} ended while starting; its output says why.")
                if self._is_ready(client):
                    return
        raise ConfigError(f"API and worker were not ready after {START_TIMEOUT_S:.0f} s.")

    def _is_ready(self, client: httpx.Client) -> bool:
        # Another program may have taken the port since the check, and would answer there.
        if not listens(self._running["API"].pid, self._port):
            return False
        try:
            answer = client.get("/health/ready")
        except httpx.TransportError:
            return False
        return answer.is_success and bool(answer.json()["models"])

    def _stop(self, name: str, process: subprocess.Popen[bytes]) -> None:
        self._say(f"stopping the {name}")
        if not processes.stop(process, self._settings.shutdown_grace_s + 5):
            self._say(f"the {name} did not stop in time and was killed")


@contextmanager
def _store_in(data_dir: Path, stopping: threading.Event) -> Iterator[EmbeddedServer]:
    setting = "--data-dir or MODELMILL_DATA_DIR"
    make_folder(data_dir, setting)
    with ExitStack() as cleanup:
        try:
            server = cleanup.enter_context(EmbeddedServer(data_dir, stopping))
        except OSError as error:
            place = error.filename or data_dir
            raise ConfigError(
                f"{place} cannot be written: {error.strerror}. Name another folder with {setting}."
            ) from None
        yield server


def run_stack(devices: str, preload: str) -> int:
    """`modelmill up`: runs until Ctrl-C, SIGTERM or SIGHUP. Returns 1 if a part ended by itself, otherwise 0.

    Raises:
        ConfigError: API or worker would refuse a setting. Nothing was started.
    """
    stopping = threading.Event()

    def on_signal(_number: int, _frame: FrameType | None) -> None:
        stopping.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    processes.on_hangup(on_signal)
    settings = get_settings()
    check_settings(settings)
    check_worker_settings(settings)
    check_models_file(settings.models_file, has_runners=True, loads=True)
    with Stack(
        settings, settings.host, settings.port, devices, preload,
        say=lambda line: err.say((line, "dim")), stopping=stopping,
    ) as stack:  # fmt: skip
        if not stopping.is_set():
            out.say("\nModelmill is up at ", (stack.url, "bold"), f"  (try it at {stack.url}/docs)")
            out.say(f"Jobs are kept in {settings.data_dir}. Stop with Ctrl-C.\n")
        while not stopping.wait(0.5):
            if (name := stack.ended()) is not None:
                err.say(("error", "red"), f": the {name} ended by itself; stopping the rest.")
                return 1
    return 0


def open_log(path: Path) -> IO[bytes]:
    """A file for the output of the processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("ab")
