"""The calls of a client, as flows. Both kinds of client run them."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, Any, TypeAlias, TypeVar
from urllib.parse import quote

import httpx

from modelmill.client.errors import (
    ApiError,
    InvalidRequestError,
    JobTimeoutError,
    ended_badly,
    foreign,
    refused_line,
)
from modelmill.client.events import Cursor
from modelmill.client.media import File, Payload, media_in, path_hint, payload_of, plain, to_json
from modelmill.client.protocol import (
    RETRIED,
    Call,
    Flow,
    Listen,
    Pause,
    RetryPolicy,
    RunBlocking,
    Send,
    parsed,
    parsed_line,
)
from modelmill.errors import ErrorCode

TERMINAL = frozenset({"complete", "failed", "canceled"})
ASK_WAIT_S = 20
"""How long one request asks the server to wait; short enough for proxies in between."""
IDLE_S = 60.0
"""A stream of events without a byte for this long counts as broken; servers send comments more often."""
MAX_BULK_LINES = 256
"""The most lines in one request. The server answers while it still reads, so its answers must fit into the
buffers on the way."""
MAX_BULK_BYTES = 8 * 1024 * 1024
MAX_COLLECT = 1000
MAX_PAGE = 100

Document: TypeAlias = dict[str, Any]
T = TypeVar("T")
Uploadable: TypeAlias = Path | bytes | IO[bytes]


@dataclass
class PendingSubmit:
    """One submit. With it, the job can be canceled before its id is known."""

    task: str = ""
    call: Call | None = None
    job_id: str | None = None
    key: str = field(default_factory=lambda: uuid.uuid4().hex)


@dataclass(frozen=True)
class Flows:
    """The calls to one server.

    Attributes:
        policy: When a request is sent again.
        upload_over_bytes: Larger media are uploaded first.
    """

    policy: RetryPolicy
    upload_over_bytes: int

    def read(self, *parts: str, **params: Any) -> Flow[Any]:
        """The JSON at a path."""
        given = {name: value for name, value in params.items() if value is not None}
        return self.policy.json(Call("GET", _path(*parts), params=given))

    def ready(self) -> Flow[Any]:
        return self.policy.json(Call("GET", "/health/ready"))

    def page(self, wanted: Mapping[str, str | None], cursor: str | None, left: int | None) -> Flow[Any]:
        """One page of the list of jobs."""
        limit = MAX_PAGE if left is None else min(left, MAX_PAGE)
        return self.read("jobs", **wanted, cursor=cursor, limit=limit)

    def post(self, *parts: str) -> Flow[Any]:
        return self.policy.json(Call("POST", _path(*parts)))

    # Jobs

    def submit(
        self,
        task: str,
        model: str,
        fields: Mapping[str, Any],
        pending: PendingSubmit,
        *,
        batched: bool = False,
        wait: bool = False,
        deadline: float | None = None,
    ) -> Flow[Document]:
        """Submits a job; returns its document, or the part of it that is known.

        Args:
            task: Name of the task.
            model: Name of the model.
            fields: The task's fields.
            pending: Its key is sent as Idempotency-Key. The flow fills in the rest.
            batched: Whether it is a batched job.
            wait: Whether to wait a while for the end, so that a short job takes one request.
            deadline: When to stop trying and waiting, as a time of ``time.monotonic``.
        """
        body = yield from self.encode(fields)
        path = _path("tasks", task, *(("batched",) if batched else ()), model, "jobs")
        wait_s = _ask_s(deadline) if wait else 0
        pending.task = task
        pending.call = Call.with_json("POST", path, body, headers={"Idempotency-Key": pending.key})
        call = Call.with_json(
            "POST", path, body, headers={"Idempotency-Key": pending.key, **_prefer(wait_s)}, extra_s=wait_s
        )
        try:
            answer = yield from self.policy.json(call, deadline)
        except InvalidRequestError as error:
            raise _with_hint(error, fields) from None
        document = {"task": task, "model": model, **answer}
        pending.job_id = str(document["id"])
        return document

    def run(
        self,
        task: str,
        model: str,
        fields: Mapping[str, Any],
        pending: PendingSubmit,
        *,
        batched: bool = False,
        timeout_s: float | None = None,
    ) -> Flow[Any]:
        """Submits a job, waits for its end, and returns its result."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        document = yield from self.submit(
            task, model, fields, pending, batched=batched, wait=True, deadline=deadline
        )
        if document["status"] not in TERMINAL:
            document = yield from self.wait(str(document["id"]), deadline, timeout_s)
        if document["status"] != "complete":
            raise ended_badly(document)
        return document["result"]

    def abandon(self, pending: PendingSubmit) -> Flow[None]:
        """Cancels the job of a submit whose result is no longer needed."""
        if pending.call is None:
            return
        if pending.job_id is None:
            # The key makes it the same job. Without ``Prefer``, the server answers at once.
            answer = yield Send(pending.call)
            if not answer.is_success:
                return
            pending.job_id = str(parsed(answer)["id"])
        yield Send(Call("POST", _path("tasks", pending.task, "jobs", pending.job_id, "cancel")))

    def wait(
        self, job_id: str, deadline: float | None = None, timeout_s: float | None = None
    ) -> Flow[Document]:
        """Waits for a job's end; returns its document.

        The flow listens to the job's events while there is time for more than one other request. Then it asks
        the server to answer at the job's end (``Prefer: wait``). If the server supports neither, it polls.

        Raises:
            JobTimeoutError: the job has not ended by ``deadline``; ``timeout_s`` is for the message.
        """
        cursor, pause_s, silent_streams = Cursor(job_id), 0.01, 0
        while True:
            # A stream notices the deadline only when a comment or an event arrives. So the flow does not
            # listen in the last seconds.
            has_time = deadline is None or _left_s(deadline) > ASK_WAIT_S
            if cursor.is_supported and silent_streams < 3 and has_time:
                until = None if deadline is None else deadline - ASK_WAIT_S
                yield from self._listen(cursor, until)
                if cursor.document is not None and cursor.document.get("status") in TERMINAL:
                    return cursor.document
                silent_streams = 0 if cursor.received else silent_streams + 1
            wait_s, asked_at = _ask_s(deadline), time.monotonic()
            document = yield from self.ask(job_id, wait_s, deadline)
            if document["status"] in TERMINAL:
                return document
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                raise JobTimeoutError(job_id, document["status"], timeout_s)
            # The server answered early: it does not support waiting, or it is stopping.
            if now - asked_at < wait_s / 2 or not wait_s:
                yield Pause(pause_s if deadline is None else min(pause_s, max(deadline - now, 0.0)))
                pause_s = min(pause_s * 1.5, 1.0)

    def _listen(self, cursor: Cursor, until: float | None) -> Flow[None]:
        try:
            yield Listen(cursor, events_call(cursor), until)
        except httpx.TransportError:
            pass  # if more is wrong than a broken stream, the next request finds out
        except ApiError as error:
            if error.status not in RETRIED:
                raise

    def ask(self, job_id: str, wait_s: int = 0, deadline: float | None = None) -> Flow[Document]:
        """The job's document. The server answers at the job's end, or after ``wait_s``."""
        call = Call("GET", _path("jobs", job_id), headers=_prefer(wait_s), extra_s=wait_s)
        document = yield from self.policy.json(call, deadline)
        return dict(document)

    def cancel(self, task: str, job_id: str) -> Flow[Document]:
        call = Call("POST", _path("tasks", task, "jobs", job_id, "cancel"))
        answer = yield from self.policy.json(call)
        return dict(answer)

    def delete(self, job_id: str) -> Flow[None]:
        yield from self.policy.exchange(Call("DELETE", _path("jobs", job_id)))

    def rerun(self, job_id: str) -> Flow[Document]:
        headers = {"Idempotency-Key": uuid.uuid4().hex}
        call = Call("POST", _path("jobs", job_id, "rerun"), headers=headers, repeatable=False)
        answer = yield from self.policy.json(call)
        return dict(answer)

    # Many

    def encode_row(self, row: Mapping[str, Any]) -> Flow[bytes]:
        """A line of a bulk submit. A row without an idempotency key gets a new one."""
        keyed = row if row.get("idempotency_key") else {**row, "idempotency_key": uuid.uuid4().hex}
        body = yield from self.encode(keyed)
        return body + b"\n"

    def bulk(self, task: str, model: str, lines: Sequence[bytes]) -> Flow[list[Document | ApiError]]:
        """Submits many jobs in one request; returns one answer per line, in order.

        Lines whose answers were lost are sent again. Their keys make that safe.
        """
        answers: list[Document | ApiError] = []
        path, attempt = _path("tasks", task, model, "jobs:bulk"), 0
        while len(answers) < len(lines):
            call = Call("POST", path, headers=_NDJSON, content=list(lines[len(answers) :]))
            got: list[bytes] = []
            response = yield from self.policy.exchange(call, lines=got)
            if not got:
                # A server that is stopping reads no more lines.
                if (pause_s := self.policy.next_pause(attempt)) is None:
                    raise foreign(response)
                yield Pause(pause_s)
            attempt = 0 if got else attempt + 1
            for line in got[: len(lines) - len(answers)]:
                answers.append(_line_answer(parsed_line(line, response), task, model))
        return answers

    def collect(self, ids: Iterable[str], wait_s: int, delete: bool) -> Flow[list[Document]]:
        """The documents of the jobs that have ended. With ``delete``: deletes all these jobs."""
        wanted = list(ids)
        if len(wanted) > MAX_COLLECT:
            raise ValueError(f"At most {MAX_COLLECT} ids at once; these are {len(wanted)}.")
        if not wanted:
            return []
        body = to_json({"ids": wanted, "delete": delete}, {})
        call = Call.with_json("POST", _path("jobs:collect"), body, headers=_prefer(wait_s), extra_s=wait_s)
        if delete:
            yield from self.policy.exchange(call)
            return []
        lines: list[bytes] = []
        response = yield from self.policy.exchange(call, lines=lines)
        return [parsed_line(line, response) for line in lines]

    # Files

    def upload(self, source: Uploadable, name: str | None = None) -> Flow[File]:
        """Uploads a file as a stream."""
        payload = yield from _work(partial(payload_of, source))
        named = Payload(payload.content, name or payload.name, payload.media_type, payload.size)
        return (yield from self._upload(named))

    def _upload(self, payload: Payload) -> Flow[File]:
        call = Call("POST", _path("files"), payload=payload)
        document = yield from self.policy.json(call)
        return File.from_document(document)

    def download(self, file: File | str) -> Flow[bytes]:
        response = yield from self.policy.exchange(Call("GET", _path("files", _file_id(file))))
        return response.content

    def delete_file(self, file: File | str) -> Flow[None]:
        yield from self.policy.exchange(Call("DELETE", _path("files", _file_id(file))))

    def encode(self, fields: Mapping[str, Any]) -> Flow[bytes]:
        """The fields as JSON. Media that are too large for that are uploaded first."""
        resolved: dict[int, Any] = {}
        inlined = 0
        for where, value in media_in(fields):
            if id(value) in resolved:
                continue
            if isinstance(value, File):
                resolved[id(value)] = value.id
            elif (number := plain(value)) is not None:
                resolved[id(value)] = number
            else:
                payload = yield from _work(partial(payload_of, value, where))
                if payload.size is None:
                    payload = yield from _work(payload.loaded)
                size = payload.size or 0
                # Many small media together can be too large for one request as well.
                if size > self.upload_over_bytes or inlined + size > 2 * self.upload_over_bytes:
                    resolved[id(value)] = (yield from self._upload(payload)).id
                else:
                    inlined += size
                    resolved[id(value)] = yield from _work(payload.data_url)
        if inlined > 100_000:
            return (yield from _work(partial(to_json, fields, resolved)))
        return to_json(fields, resolved)


_NDJSON = {"Content-Type": "application/x-ndjson", "Accept": "application/x-ndjson"}


def events_call(cursor: Cursor) -> Call:
    """The request for a job's events from the position of the cursor."""
    return Call("GET", _path("jobs", cursor.job_id, "events"), headers=cursor.headers, extra_s=IDLE_S)


def _work(function: Callable[[], T]) -> Flow[T]:
    given: T = yield RunBlocking(function)
    return given


def _path(*parts: str) -> str:
    return "/api/" + "/".join(quote(part, safe=":") for part in parts)


def _prefer(wait_s: int) -> dict[str, str]:
    return {"Prefer": f"wait={wait_s}"} if wait_s else {}


def _left_s(deadline: float) -> float:
    return deadline - time.monotonic()


def _ask_s(deadline: float | None) -> int:
    """How long to ask the server to wait: whole seconds, less than the time that is left."""
    return ASK_WAIT_S if deadline is None else max(0, int(min(_left_s(deadline), ASK_WAIT_S)))


def _file_id(file: File | str) -> str:
    return str(file).removeprefix("file:")


def _line_answer(line: Document, task: str, model: str) -> Document | ApiError:
    if "error" in line:
        return refused_line(line["error"])
    return {"task": task, "model": model, **line}


def _with_hint(error: InvalidRequestError, fields: Mapping[str, Any]) -> InvalidRequestError:
    if error.code is not ErrorCode.INVALID_MEDIA:
        return error
    hint = next(filter(None, (path_hint(fields, field.field) for field in error.fields)), "")
    return InvalidRequestError(
        error.code,
        error.message + hint,
        fields=error.fields,
        retry_after_s=error.retry_after_s,
        status=error.status,
    )
