"""Clients of the real API, and servers with behaviour that is rare in a real one."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.routing import Route

from modelmill.client import Client
from modelmill.client import protocol as client_protocol
from tests.support.client import Answer, Play, Played
from tests.support.processes import wait_until
from tests.support.servers import QuickServer


@pytest.fixture
def client(api: httpx.Client) -> Iterator[Client]:
    with Client(str(api.base_url)) as connected:
        yield connected


@pytest.fixture
def play() -> Iterator[Play]:
    """Starts ``Played`` servers."""
    with ExitStack() as cleanup:

        def start(answer: Answer) -> Played:
            played = Played(answer)
            methods = ["GET", "POST", "DELETE"]
            app = Starlette(routes=[Route("/{path:path}", played.handle, methods=methods)])
            config = uvicorn.Config(
                app, host="127.0.0.1", port=0, log_config=None, access_log=False, lifespan="off",
                timeout_graceful_shutdown=1,
            )  # fmt: skip
            server = QuickServer(config)
            thread = threading.Thread(target=server.run, daemon=True)
            thread.start()
            wait_until(lambda: server.started, what="the played server")
            played.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
            cleanup.callback(thread.join, 10)
            cleanup.callback(setattr, server, "should_exit", True)
            return played

        yield start


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_protocol, "BACKOFF_S", 0.01)
