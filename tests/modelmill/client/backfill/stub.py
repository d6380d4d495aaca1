"""A server with the routes that a backfill uses. A test can make it misbehave. Its jobs end at once."""

from __future__ import annotations

import asyncio
import json
import threading
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.support.processes import wait_until
from tests.support.servers import QuickServer

TASK = "text-embedding"
Answer = Mapping[str, Any] | None


class Stub:
    """The server, on a real socket, in a thread of this process.

    Attributes:
        on_line: Called with a line's fields. Returns an error to answer, or None to accept the job.
        on_end: Called with a job's fields. Returns parts of its document, or None for a result made of them.
        on_request: Called with the kind of request. Returns an answer, or None to carry it out.
        seen: How often each idempotency key came.
        jobs: The jobs that were not deleted.
        in_flight: The most jobs at one time that had not been collected.
    """

    def __init__(self, document: Mapping[str, Any], port: int = 0) -> None:
        self.reset()
        self._document = json.dumps(document)
        routes = [
            Route("/api/tasks/{task}/models", self._models),
            Route("/openapi.json", self._openapi),
            Route("/api/tasks/{task}/{model}/jobs:bulk", self._bulk, methods=["POST"]),
            Route("/api/jobs:collect", self._collect, methods=["POST"]),
        ]
        config = uvicorn.Config(
            Starlette(routes=routes), host="127.0.0.1", port=port, log_config=None, lifespan="off"
        )
        self._server = QuickServer(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        wait_until(lambda: self._server.started, what="the stub")
        self.url = f"http://127.0.0.1:{self._server.servers[0].sockets[0].getsockname()[1]}"

    def reset(self) -> None:
        """Forgets all jobs, and behaves from now on."""
        self.on_line: Callable[[dict[str, Any]], Answer] = lambda _: None
        self.on_end: Callable[[dict[str, Any]], Answer] = lambda _: None
        self.on_request: Callable[[str], Response | None] = lambda _: None
        self.seen: Counter[str] = Counter()
        self.jobs: dict[str, dict[str, Any]] = {}
        self.by_key: dict[str, str] = {}
        self.waiting: set[str] = set()
        self.in_flight = 0
        self.cut_after: list[int] = []

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(timeout=10)

    async def _models(self, request: Request) -> Response:
        return self.on_request("models") or JSONResponse(["stub"])

    async def _openapi(self, request: Request) -> Response:
        return Response(self._document, media_type="application/json")

    async def _bulk(self, request: Request) -> Response:
        body = await request.body()
        refusal = self.on_request("bulk")
        if refusal is not None:
            return refusal
        lines = [json.loads(line) for line in body.splitlines()]
        answers = [json.dumps(self._accept(line)).encode() + b"\n" for line in lines]
        if self.cut_after:
            answers = answers[: self.cut_after.pop()]
        return Response(b"".join(answers), media_type="application/x-ndjson")

    def _accept(self, fields: dict[str, Any]) -> dict[str, Any]:
        key = fields["idempotency_key"]
        self.seen[key] += 1
        answer = self.on_line(fields)
        if answer is not None:
            return {"error": dict(answer)}
        if key not in self.by_key:
            self.by_key[key] = str(uuid.uuid4())
            self.jobs[self.by_key[key]] = fields
        self.waiting.add(self.by_key[key])
        self.in_flight = max(self.in_flight, len(self.waiting))
        return {"id": self.by_key[key], "status": "starting"}

    async def _collect(self, request: Request) -> Response:
        wanted = json.loads(await request.body())
        refusal = self.on_request("delete" if wanted["delete"] else "collect")
        if refusal is not None:
            return refusal
        if wanted["delete"]:
            return JSONResponse(
                {"deleted": sum(self.jobs.pop(each, None) is not None for each in wanted["ids"])}
            )
        await asyncio.sleep(0)
        return StreamingResponse(self._documents(wanted["ids"]), media_type="application/x-ndjson")

    async def _documents(self, ids: list[str]) -> AsyncIterator[bytes]:
        for job_id in ids:
            self.waiting.discard(job_id)
            fields = self.jobs.get(job_id)
            if fields is None:
                document: dict[str, Any] = {"id": job_id, "status": None, "error": {"code": "job_not_found"}}
            else:
                ended = self.on_end(fields) or {
                    "status": "complete",
                    "result": {"embedding": [fields["text"]]},
                }
                document = {"id": job_id, **ended}
            yield json.dumps(document).encode() + b"\n"


def refused(status: int, code: str, **headers: str) -> Response:
    """A problem document."""
    return JSONResponse({"code": code, "detail": f"It is {code}.", "status": status}, status, headers)
