"""The events of a job, as server-sent events (WHATWG HTML, section 9.2)."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request, Response
from starlette.types import Receive, Scope, Send

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.store import JobRecord
from modelmill.store.events import Event, cursor_of, is_end
from modelmill_api.callers import caller_of
from modelmill_api.lookup import get_job, get_task_job
from modelmill_api.middleware.metrics import leave_out_of_latency, name_route
from modelmill_api.paths import task_path
from modelmill_api.problems import describe_problems
from modelmill_api.responses import job_document, job_json
from modelmill_api.state import ApiState, State
from modelmill_api.waiting import disconnect
from modelmill_tasks.registry import find_task

KEEP_ALIVE_S = 15.0
"""How often a quiet stream carries a comment. Without it, proxies would close the connection."""
RETRY_S = 2.0
"""How often the job store is asked again while it does not answer, give or take a half."""
# Without the empty line that ends an event: some clients would see an empty event.
RECONNECT = b"retry: 1000\n"
"""Milliseconds after which a browser reconnects if its stream breaks."""
KEEP_ALIVE = b": keep-alive\n"

MEDIA_TYPE = "text/event-stream"
_HEADERS = {"Content-Type": MEDIA_TYPE, "X-Accel-Buffering": "no"}

LastEventId = Annotated[
    str | None,
    Header(
        description="The id of the last event that you saw, as browsers send it when they reconnect. The "
        "stream begins after it. With any other text, the stream begins with the first event.",
    ),
]

_EXAMPLE = (
    "retry: 1000\n"
    'id: 0-1\nevent: started\ndata: {"id":"…","status":"running","started_at":"…","deliveries":1}\n\n'
    'id: 1735689600000-0\nevent: progress\ndata: {"done":12,"total":64,"unit":"tokens"}\n\n'
    'id: 1735689601000-0\nevent: log\ndata: {"message":"…","level":"info"}\n\n'
    'id: 1735689602000-18446744073709551615\nevent: ended\ndata: {"id":"…","status":"complete"}\n\n'
)
_ABOUT = (
    "Server-sent events `started`, `progress`, `log` and `ended`, each with an id and one line of JSON, from "
    "the first one on. The stream ends after `ended`, whose data is the job's document. If the server stops "
    "or the job is deleted, the stream ends without `ended`: reconnect with `Last-Event-ID`. "
    "If a job has very many events, only the latest few hundred are kept."
)
_DOCUMENTED: dict[str, Any] = {
    "response_class": Response,
    "summary": "Follow a job",
    "description": _ABOUT,
}


def _responses(*codes: ErrorCode) -> dict[int | str, dict[str, Any]]:
    # Without a schema: OpenAPI 3.1 cannot describe the events of a stream.
    stream = {"example": _EXAMPLE}
    return {
        200: {"description": "The events", "content": {MEDIA_TYPE: stream}},
        204: {"description": "`Last-Event-ID` is that of `ended`: no event follows"},
        **describe_problems(*codes, ErrorCode.JOB_NOT_FOUND, ErrorCode.STORE_UNAVAILABLE),
    }


router = APIRouter()


@router.get("/api/jobs/{id}/events", responses=_responses(), tags=["jobs"], **_DOCUMENTED)
async def follow(id: str, request: Request, state: State, last_event_id: LastEventId = None) -> Response:
    caller = caller_of(request)
    return await _respond(state, id, last_event_id, lambda: get_job(state, caller, id))


def _add_task_route(batched: bool) -> None:
    async def follow(
        task: str, id: str, request: Request, state: State, last_event_id: LastEventId = None
    ) -> Response:
        caller, contract = caller_of(request), find_task(task)
        name_route(request.scope, f"{task_path(contract.name, batched)}/jobs/{{id}}/events")
        return await _respond(
            state, id, last_event_id, lambda: get_task_job(state, caller, contract, id, batched)
        )

    path = f"{task_path('{task}', batched)}/jobs/{{id}}/events"
    name = f"follow_{'batched_' if batched else ''}task_job"
    documented = _responses(ErrorCode.TASK_NOT_FOUND)
    router.get(path, responses=documented, tags=["tasks"], operation_id=name, **_DOCUMENTED)(follow)


_add_task_route(batched=False)
_add_task_route(batched=True)


async def _respond(
    state: ApiState, job_id: str, last_event_id: str | None, read: Callable[[], Awaitable[JobRecord]]
) -> Response:
    record = await read()
    cursor = cursor_of(last_event_id or "")
    if is_end(cursor) and record.status.is_terminal:
        # A browser that gets a 204 does not reconnect.
        return Response(status_code=204)
    return EventStream(state, job_id, cursor, read)


class EventStream(Response):
    """The events of one job, from a cursor to the end.

    It reads new events when the client has taken the last one, so a slow client costs no memory. While the
    job store does not answer, the stream stays open, and then goes on where it was. It ends early if the job
    is deleted or this process stops.
    """

    def __init__(
        self, state: ApiState, job_id: str, cursor: str, read: Callable[[], Awaitable[JobRecord]]
    ) -> None:
        # The constructor of Response is not called, because it would set a length.
        self.status_code = 200
        self.background = None
        self.init_headers(_HEADERS)
        self._state = state
        self._job_id = job_id
        self._cursor = cursor
        self._read = read

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The caller asked for this time; it is no latency of ours.
        leave_out_of_latency(scope)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        # First subscribe, then read: one of the two sees what happens in between.
        with self._state.news.follow(self._job_id) as news:
            gone = asyncio.create_task(disconnect(receive))
            gone.add_done_callback(lambda _: news.set())
            try:
                await _write(send, RECONNECT)
                await self._follow(news, gone, send)
            finally:
                gone.cancel()
                await asyncio.wait((gone,))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _follow(self, news: asyncio.Event, gone: asyncio.Task[None], send: Send) -> None:
        """Sends events until the last one, until the client hangs up, or until this process stops."""
        while not (gone.done() or self._state.news.is_shutting_down):
            news.clear()
            pause_s = KEEP_ALIVE_S
            try:
                events = await self._state.store.events.after(self._job_id, self._cursor)
                if events is None:
                    return
                for event in events:
                    await _write(send, _frame(event, await self._data(event)))
                    self._cursor = event.id
                    if event.kind == "ended":
                        return
                if events:
                    continue
            except ModelmillError as error:
                if error.code is ErrorCode.JOB_NOT_FOUND:
                    return
                pause_s = RETRY_S * random.uniform(0.5, 1.5)  # noqa: S311
            await _wait(news, pause_s, send)

    async def _data(self, event: Event) -> bytes:
        if event.kind not in ("started", "ended"):
            return event.data
        record = await self._read()
        if event.kind == "ended":
            return job_json(record, {})
        document = job_document(record, {})
        started = {name: document[name] for name in ("id", "status", "started_at", "deliveries")}
        return json.dumps(started | {"status": "running"}, separators=(",", ":")).encode()


async def _wait(news: asyncio.Event, pause_s: float, send: Send) -> None:
    """Waits for news. After ``pause_s`` without news it sends a comment, to keep the stream alive."""
    try:
        async with asyncio.timeout(pause_s):
            await news.wait()
    except TimeoutError:
        await _write(send, KEEP_ALIVE)


async def _write(send: Send, content: bytes) -> None:
    await send({"type": "http.response.body", "body": content, "more_body": True})


def _frame(event: Event, data: bytes) -> bytes:
    # JSON has line breaks only between its parts, where a space means the same.
    line = data.replace(b"\r", b" ").replace(b"\n", b" ")
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.id.encode(), event.kind.encode(), line)
