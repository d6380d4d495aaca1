"""Servers that answer a client as the test tells them, also in ways that are rare for a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from modelmill_tasks.shared.examples import CAT

TASK = "zero-shot-image-classification"
INPUTS: dict[str, Any] = {"image": CAT, "classes": ["cat", "dog"]}
JOB_ID = "0b5f1c0e-0000-4000-8000-000000000000"
Answer = Callable[[Request], Response | Awaitable[Response]]
Play = Callable[[Answer], "Played"]


@dataclass
class Played:
    """A server whose answers come from a function of the test."""

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


class Broken(Exception):  # noqa: N818
    """Raised by a server that breaks off its answer."""


def broken_stream(*pieces: bytes, media_type: str = "text/event-stream") -> StreamingResponse:
    """An answer that breaks off after these parts."""

    async def stream() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece
        raise Broken

    return StreamingResponse(stream(), media_type=media_type)


def event(id_: str, kind: str, data: str) -> bytes:
    return f"id: {id_}\nevent: {kind}\ndata: {data}\n\n".encode()
