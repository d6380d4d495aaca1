"""Clients of the real API, and servers with behaviour that is rare in a real one."""

from __future__ import annotations

import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from modelmill.client import Client
from modelmill.client import protocol as client_protocol
from modelmill.states import Status
from modelmill.store import Outcome, WorkerStore
from modelmill_tasks.shared.examples import CAT
from tests.conftest import QuickServer, wait_until

TASK = "zero-shot-image-classification"
INPUTS: dict[str, Any] = {"image": CAT, "classes": ["cat", "dog"]}
RESULT = b'{"probabilities":[0.8,0.2]}'
JOB_ID = "0b5f1c0e-0000-4000-8000-000000000000"

Answer = Callable[[Request], Response | Awaitable[Response]]
Play = Callable[[Answer], "Played"]


@pytest.fixture
def client(api: httpx.Client) -> Iterator[Client]:
    with Client(str(api.base_url)) as connected:
        yield connected


def finish(store: WorkerStore, status: Status = Status.COMPLETE, result: bytes = RESULT) -> list[str]:
    """Acts as the worker: ends all jobs that wait for the model ``noop``."""
    jobs = store.claim("noop", uuid.uuid4().hex, "node", 1000, 10**9).jobs
    end: dict[str, Any] = {}
    if status is Status.COMPLETE:
        end = {"result": result}
    elif status is Status.FAILED:
        end = {"error": {"code": "inference_failed", "message": "No.", "retryable": False}}
    store.settle([Outcome(job.id, job.fence, status, **end) for job in jobs])
    return [job.id for job in jobs]


@dataclass
class Played:
    """A small server that answers with a function of the test."""

    answer: Answer
    seen: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)
    """Method, path with query, headers and body of each request."""
    url: str = ""

    @property
    def paths(self) -> list[str]:
        return [f"{method} {path}" for method, path, _, _ in self.seen]

    async def handle(self, request: Request) -> Response:
        body = await request.body()
        query = f"?{request.url.query}" if request.url.query else ""
        self.seen.append((request.method, request.url.path + query, dict(request.headers), body))
        given = self.answer(request)
        return given if isinstance(given, Response) else await given


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


class Broken(Exception):  # noqa: N818
    """Breaks off an answer."""


def broken_stream(*pieces: bytes, media_type: str = "text/event-stream") -> StreamingResponse:
    """An answer that breaks off after these pieces."""

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        raise Broken

    return StreamingResponse(stream(), media_type=media_type)


def event(id_: str, kind: str, data: str) -> bytes:
    return f"id: {id_}\nevent: {kind}\ndata: {data}\n\n".encode()


@pytest.fixture(autouse=True)
def _quick_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_protocol, "BACKOFF_S", 0.01)
