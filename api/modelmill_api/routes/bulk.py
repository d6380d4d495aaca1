"""Many jobs in one request: each line is a job, and is answered by a line while the request is still read."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request, Response
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.ndjson import LineSplitter
from modelmill.states import Status
from modelmill.store import Submission
from modelmill_api.body import json_text, too_large
from modelmill_api.callers import Caller, caller_of
from modelmill_api.encodings import decoded, encoding_of
from modelmill_api.middleware.metrics import leave_out_of_latency, name_route
from modelmill_api.paths import bulk_path
from modelmill_api.room import Place
from modelmill_api.state import ApiState, state_of
from modelmill_api.submitting import SubmitRequest, accept_many, prepare
from modelmill_tasks.contract import Task
from modelmill_tasks.registry import find_task

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/x-ndjson"
GROUP = 32
"""Lines that are prepared together and go to the job store in one round trip."""
AHEAD = 4
"""Groups that are prepared while an earlier one goes to the store."""
LARGE_BYTES = 1024 * 1024
"""After a larger line, the next one is read only when this one is prepared."""
MAX_UNREAD_BYTES = 4 * 1024 * 1024
"""Answers that are kept for a client that does not read them yet. At this size the request is not read on."""

Prepared = Submission | ModelmillError
_Group = tuple[int, asyncio.Task[list[Prepared]]]
"""The size of some lines, and the task that prepares them."""


def add_routes(app: FastAPI) -> None:
    """Adds one plain Starlette route for all tasks, as ``jobs.add_routes`` does, and for the same reason."""
    app.add_route(bulk_path("{task}"), _submit_many, ["POST"])


async def _submit_many(request: Request) -> Response:
    state, model = state_of(request), request.path_params["model"]
    task = find_task(request.path_params["task"])
    name_route(request.scope, bulk_path(task.name))
    await state.directory.check(task, model)
    encoding_of(request)
    return _BulkResponse(request, state, caller_of(request), task, model)


class _BulkResponse(Response):
    """Reads lines, submits them and answers, all three at the same time and each bounded.

    Starlette's ``StreamingResponse`` will not do: it listens for a client that hangs up, and so swallows the
    rest of the request.
    """

    media_type = MEDIA_TYPE

    def __init__(self, request: Request, state: ApiState, caller: Caller, task: Task, model: str) -> None:
        # Without this header, proxies such as nginx would keep the answers back.
        super().__init__(headers={"X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._request = request
        self._state = state
        self._caller = caller
        self._task = task
        self._model = model
        self._groups: asyncio.Queue[_Group | None] = asyncio.Queue(AHEAD)
        self._splitter = LineSplitter(state.settings.max_body_bytes)
        self._place = Place(state.room)
        self._lines_bytes = 0
        """Lines that are being prepared or wait for the job store."""
        self._is_gone = False
        """Whether the client has hung up. Accepted jobs stay accepted."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # The client decides how long such a request takes; it is no latency of ours.
        leave_out_of_latency(scope)
        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
        unread = _Unread(send)
        reading = asyncio.create_task(self._read())
        sending = asyncio.create_task(unread.send())
        try:
            # When the server stops, it reads no further. Lines without an answer were not accepted.
            with self._state.news.until_shutdown() as stopping:
                stopping.add_done_callback(lambda _: reading.cancel())
                while (group := await self._groups.get()) is not None:
                    size, prepared = group
                    answers = await self._accept(await prepared)
                    self._lines_bytes -= size
                    self._place.shrink(self._held_bytes)
                    if self._is_gone:
                        return
                    await unread.put(answers)
            await asyncio.wait((reading,))
            if not reading.cancelled():
                reading.result()
            if not self._is_gone:
                await unread.close()
                await sending
        finally:
            self._place.leave()
            await self._leave(reading, sending)

    @property
    def _held_bytes(self) -> int:
        return self._splitter.begun_bytes + self._lines_bytes

    async def _leave(self, *running: asyncio.Task[None]) -> None:
        groups = [group[1] for group in _take_all(self._groups) if group is not None]
        for task in (*running, *groups):
            task.cancel()
        await asyncio.gather(*running, *groups, return_exceptions=True)

    async def _read(self) -> None:
        """Splits the request into groups of lines, and starts to prepare each group."""
        splitter = self._splitter
        try:
            async for chunk in decoded(self._request):
                # The chunk counts twice, as it lies in the lines as well.
                await self._place.resize(self._held_bytes + 2 * len(chunk))
                await self._begin(list(splitter.feed(chunk)))
            await self._begin(list(splitter.end()))
        except ClientDisconnect:
            self._is_gone = True
        except ModelmillError as error:
            # The encoding is broken, or this process holds too many bodies. The next line gets the error. The
            # lines after it get no answer, as if the connection had broken.
            await self._groups.put((0, asyncio.create_task(_only(error))))
        finally:
            await self._groups.put(None)

    async def _begin(self, lines: Sequence[bytes | None]) -> None:
        for start in range(0, len(lines), GROUP):
            some = lines[start : start + GROUP]
            group = asyncio.create_task(self._prepare(some))
            size = sum(len(line or b"") for line in some)
            self._lines_bytes += size
            await self._groups.put((size, group))
            if size > LARGE_BYTES:
                await asyncio.wait((group,))

    async def _prepare(self, lines: Sequence[bytes | None]) -> list[Prepared]:
        return await asyncio.gather(*(self._prepare_one(line) for line in lines))

    async def _prepare_one(self, line: bytes | None) -> Prepared:
        if line is None:
            return too_large(self._state.settings.max_body_bytes)
        try:
            return await prepare(
                self._state, SubmitRequest(self._caller, self._task, self._model, json_text(line))
            )
        except ModelmillError as error:
            return error
        except Exception:
            logger.exception("a line of a bulk submit could not be prepared")
            return ModelmillError(ErrorCode.INTERNAL, "An error inside the server. It was logged.")

    async def _accept(self, prepared: Sequence[Prepared]) -> bytes:
        """Submits a group; the answers, one per line."""
        jobs = [job for job in prepared if isinstance(job, Submission)]
        answers = iter(await accept_many(self._state, self._model, jobs) if jobs else ())
        verdicts = [next(answers) if isinstance(job, Submission) else job for job in prepared]
        return b"".join(
            _refused(verdict)
            if isinstance(verdict, ModelmillError)
            else b'{"id":"%b","status":"%b"}\n' % (verdict.id.encode(), Status.STARTING.value.encode())
            for verdict in verdicts
        )


async def _only(error: ModelmillError) -> list[Prepared]:
    return [error]


class _Unread:
    """Answers that the client has not read yet."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._data = bytearray()
        self._changed = asyncio.Condition()
        self._is_closed = False

    async def put(self, data: bytes) -> None:
        """Adds an answer. Waits while too much is unread."""
        async with self._changed:
            await self._changed.wait_for(lambda: len(self._data) < MAX_UNREAD_BYTES or self._is_closed)
            self._data += data
            self._changed.notify_all()

    async def close(self) -> None:
        async with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    async def send(self) -> None:
        """Sends answers as they come, until it is closed."""
        try:
            more = True
            while more:
                async with self._changed:
                    await self._changed.wait_for(lambda: bool(self._data) or self._is_closed)
                    data, self._data = bytes(self._data), bytearray()
                    more = not self._is_closed
                    self._changed.notify_all()
                await self._send({"type": "http.response.body", "body": data, "more_body": more})
        finally:
            # If sending fails, `put` must not wait for it.
            await self.close()


def _take_all(queue: asyncio.Queue[Any]) -> Iterator[Any]:
    """Takes all that is in ``queue`` now."""
    with suppress(asyncio.QueueEmpty):
        while True:
            yield queue.get_nowait()


def _refused(error: ModelmillError) -> bytes:
    data = error.as_data()
    if error.retry_after_s is not None:
        data["retry_after_s"] = round(error.retry_after_s, 3)
    if error.fields:
        data["errors"] = [{"field": item.field, "message": item.message} for item in error.fields]
    return json.dumps({"error": data}, separators=(",", ":")).encode() + b"\n"
