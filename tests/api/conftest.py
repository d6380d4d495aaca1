"""An API that asks for keys, and callers who have one."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelmill import processes
from modelmill.settings import Settings
from modelmill.store.callers import KeyRing
from tests.conftest import ApiServer, environment_of, wait_until


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


@pytest.fixture
def ring(settings: Settings) -> Iterator[KeyRing]:
    with KeyRing(settings.redis_url) as found:
        yield found


@pytest.fixture
def keyed(settings: Settings) -> Iterator[str]:
    """The URL of an API that asks for keys."""
    server = ApiServer(settings.model_copy(update={"auth": "on"}))
    yield server.url
    server.close()


class People:
    """Clients of one API, each with a key of its own."""

    def __init__(self, url: str, ring: KeyRing, cleanup: ExitStack) -> None:
        self._url, self._ring, self._cleanup = url, ring, cleanup

    def __call__(self, name: str = "somebody", **may: Any) -> httpx.Client:
        return self.with_token(self._ring.create(name, **may))

    def with_token(self, token: str | None) -> httpx.Client:
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        return self._cleanup.enter_context(httpx.Client(base_url=self._url, headers=headers, timeout=30))


@pytest.fixture
def people(keyed: str, ring: KeyRing) -> Iterator[People]:
    with ExitStack() as cleanup:
        yield People(keyed, ring, cleanup)
