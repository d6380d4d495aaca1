"""The logic that both clients share, without input and output: requests as data, and decisions on answers.

A *flow* is a generator. It yields steps and is sent the result of each: for ``Send`` an ``httpx.Response``,
and so on. ``Wire`` carries the steps out by blocking, ``AsyncWire`` by awaiting. So the code makes each
decision in one place.
"""

from __future__ import annotations

import json
import random
import ssl
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, TypeVar

import httpx

from modelmill.client.errors import ApiError, foreign, problem, unreachable
from modelmill.client.events import Cursor
from modelmill.client.media import Payload

BACKOFF_S = 0.25
MAX_BACKOFF_S = 8.0
MAX_RETRY_AFTER_S = 60.0
"""If a server asks for a longer pause, the client does not retry, and the caller gets the error."""
RETRIED = frozenset({429, 502, 503, 504})
REFUSING = frozenset({429, 503})
"""With these statuses the server has certainly not carried out the request."""

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A request as data.

    Attributes:
        content: The body; a sequence is streamed piece by piece.
        extra_s: How long the request asks the server to wait before it answers.
        repeatable: Whether it can be sent again when the server may have carried it out already.
        payload: A file, sent as multipart.
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Sequence[bytes] | None = None
    extra_s: float = 0.0
    repeatable: bool = True
    payload: Payload | None = None

    @classmethod
    def with_json(cls, method: str, path: str, body: bytes, **more: Any) -> Call:
        call = cls(method, path, content=body, **more)
        return replace(call, headers={"Content-Type": "application/json", **call.headers})


@dataclass(frozen=True)
class Send:
    """Sends a call. Result: the ``httpx.Response``, read to its end. Raises ``httpx.TransportError``."""

    call: Call


@dataclass(frozen=True)
class SendLines:
    """Sends a call and puts the lines of an NDJSON answer into ``lines``. Result: the response.

    Raises ``httpx.TransportError`` if the answer breaks off before its first line.
    """

    call: Call
    lines: list[bytes]


@dataclass(frozen=True)
class Pause:
    """Waits."""

    seconds: float


@dataclass(frozen=True)
class RunBlocking:
    """Calls a slow function, outside the event loop if there is one. Result: what the function returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Listen:
    """Reads a stream of events into the cursor until the job has ended, or until ``until``.

    ``until`` is a time of ``time.monotonic``. It is checked each time that data arrives.
    """

    cursor: Cursor
    call: Call
    until: float | None


Step: TypeAlias = Send | SendLines | Pause | RunBlocking | Listen
Flow: TypeAlias = Generator[Step, Any, T]


@dataclass(frozen=True)
class RetryPolicy:
    """When a request is sent again.

    Attributes:
        url: The server's address, for messages.
        max_retries: The most attempts after the first one.
    """

    url: httpx.URL
    max_retries: int

    def pause_s(self, attempt: int, asked_s: float | None = None) -> float:
        """The pause before retry number ``attempt``, counted from 0."""
        return growing_pause_s(attempt, asked_s, first_s=BACKOFF_S, longest_s=MAX_BACKOFF_S)

    def exchange(
        self, call: Call, deadline: float | None = None, lines: list[bytes] | None = None
    ) -> Flow[httpx.Response]:
        """Sends a call, again if that can help, and returns the successful answer.

        Args:
            call: What to send.
            deadline: The time of ``time.monotonic`` after which no attempt begins.
            lines: Receives the lines of an NDJSON answer. If the answer breaks off, the last are missing.

        Raises:
            ApiError: the last attempt was refused or got no answer.
        """
        attempt = 0
        while True:
            asked_s: float | None = None
            try:
                response: httpx.Response = yield Send(call) if lines is None else SendLines(call, lines)
            except httpx.TransportError as error:
                failure: ApiError = unreachable(self.url, error)
                cause: Exception | None = error
                again = may_repeat(error, call)
            else:
                # The first attempt deleted it and its answer was lost, so the second one finds nothing.
                is_gone = attempt and call.method == "DELETE" and response.status_code == 404
                if response.is_success or is_gone:
                    return response
                failure, cause = problem(response), None
                asked_s = failure.retry_after_s
                again = should_retry(response, call)
            if again and (pause_s := self.next_pause(attempt, asked_s, deadline)) is not None:
                yield Pause(pause_s)
                attempt += 1
                continue
            raise failure from cause

    def next_pause(
        self, attempt: int, asked_s: float | None = None, deadline: float | None = None
    ) -> float | None:
        """The pause before another attempt; None if there is no further attempt."""
        if attempt >= self.max_retries or (asked_s or 0.0) > MAX_RETRY_AFTER_S:
            return None
        pause_s = self.pause_s(attempt, asked_s)
        return None if deadline is not None and time.monotonic() + pause_s >= deadline else pause_s

    def json(self, call: Call, deadline: float | None = None) -> Flow[Any]:
        """As ``exchange``; returns the JSON of the answer."""
        response = yield from self.exchange(call, deadline)
        return parsed(response)


def growing_pause_s(attempt: int, asked_s: float | None, *, first_s: float, longest_s: float) -> float:
    """A pause that doubles with each attempt and varies at random; at least what the server asked for."""
    longest = min(first_s * 2.0 ** min(attempt, 60), longest_s)
    return max(longest * random.uniform(0.5, 1.0), asked_s or 0.0)  # noqa: S311


def parsed(response: httpx.Response) -> Any:
    """The JSON of an answer.

    Raises:
        ApiError: the answer is not JSON, so it does not come from a Modelmill server.
    """
    try:
        return response.json()
    except ValueError:
        raise foreign(response) from None


def parsed_line(line: bytes, response: httpx.Response) -> dict[str, Any]:
    """One line of an NDJSON answer."""
    try:
        document = json.loads(line)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise foreign(response)
    return document


def should_retry(response: httpx.Response, call: Call) -> bool:
    """Whether the same request may succeed later."""
    if response.status_code not in (RETRIED if call.repeatable else REFUSING):
        return False
    try:
        return response.json().get("retryable") is not False
    except (ValueError, AttributeError):
        return True


def may_repeat(error: httpx.TransportError, call: Call) -> bool:
    """Whether a call that got no answer can be sent again: that is safe and can help."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return False
    if call.payload is not None and call.payload.size is None:
        return False  # the part that was read cannot be read again
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        cause = cause.__cause__ or cause.__context__
    return call.repeatable or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
