"""What both clients share, without doing any of it: requests as data, and what to do with answers.

A *flow* is a generator that yields steps and is sent what each step gave: ``Send`` an ``httpx.Response``, and
so on. ``Wire`` and ``AsyncWire`` carry the steps out, one by blocking and the other by awaiting, so that
whatever is decided is decided here, once.
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
"""A server that asks for a longer pause is believed, and left to the caller."""
RETRIED = frozenset({429, 502, 503, 504})
REFUSING = frozenset({429, 503})
"""Of these, what was sent has surely not been done."""

T = TypeVar("T")


@dataclass(frozen=True)
class Call:
    """A request as data.

    Attributes:
        content: The body; a sequence is streamed piece by piece.
        extra_s: How long the server was asked to wait before it answers.
        repeatable: Whether sending it again is safe although the first may have been done.
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
    """To be sent; gives the ``httpx.Response``, read to its end. Raises ``httpx.TransportError``."""

    call: Call


@dataclass(frozen=True)
class SendLines:
    """To be sent; gives the response, and puts the lines of an NDJSON answer into ``lines``.

    Raises ``httpx.TransportError`` if the answer breaks off before its first line.
    """

    call: Call
    lines: list[bytes]


@dataclass(frozen=True)
class Pause:
    """To be waited out."""

    seconds: float


@dataclass(frozen=True)
class RunBlocking:
    """To be called where it holds up nobody; gives what it returns."""

    function: Callable[[], Any]


@dataclass(frozen=True)
class Listen:
    """A stream of events, to be read into the cursor until the job has ended, or until ``until``.

    ``until`` is a time of ``time.monotonic``; it is looked at whenever something comes.
    """

    cursor: Cursor
    call: Call
    until: float | None


Step: TypeAlias = Send | SendLines | Pause | RunBlocking | Listen
Flow: TypeAlias = Generator[Step, Any, T]


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long something is tried again.

    Attributes:
        url: Where the server is, for messages.
        max_retries: After the first attempt.
    """

    url: httpx.URL
    max_retries: int

    def pause_s(self, attempt: int, asked_s: float | None = None) -> float:
        """The pause before retry number ``attempt``, counted from 0: doubling, with jitter."""
        backoff = min(BACKOFF_S * 2**attempt, MAX_BACKOFF_S) * random.uniform(0.5, 1.0)  # noqa: S311
        return float(max(backoff, asked_s or 0.0))

    def exchange(
        self, call: Call, deadline: float | None = None, lines: list[bytes] | None = None
    ) -> Flow[httpx.Response]:
        """Sends, and sends again where that can help; gives an answer of success.

        Args:
            call: What to send.
            deadline: Time of ``time.monotonic`` after which nothing is tried again.
            lines: Where the lines of an NDJSON answer go; not all have come when it breaks off after some.

        Raises:
            ApiError: what the server, or nobody, answered in the end.
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
                # What a first attempt has deleted is not there for the second; only the answer was lost.
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
        """The pause before another attempt; None when there shall be none."""
        if attempt >= self.max_retries or (asked_s or 0.0) > MAX_RETRY_AFTER_S:
            return None
        pause_s = self.pause_s(attempt, asked_s)
        return None if deadline is not None and time.monotonic() + pause_s >= deadline else pause_s

    def json(self, call: Call, deadline: float | None = None) -> Flow[Any]:
        """The same as ``exchange``; gives the answer's JSON."""
        response = yield from self.exchange(call, deadline)
        return parsed(response)


def parsed(response: httpx.Response) -> Any:
    """The JSON of an answer.

    Raises:
        ApiError: it is none, so that somebody else has answered.
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
    """Whether sending again can help, and is safe, after no answer came."""
    if isinstance(error, httpx.UnsupportedProtocol | httpx.LocalProtocolError):
        return False
    if call.payload is not None and call.payload.size is None:
        return False  # what was read of it is gone
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        cause = cause.__cause__ or cause.__context__
    return call.repeatable or isinstance(error, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)


class LineBuffer:
    """Cuts bytes into lines at newlines only: JSON may hold other characters that end lines elsewhere."""

    def __init__(self) -> None:
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """The lines that ``data`` completes; empty ones are left out."""
        if b"\n" not in data:
            self._rest += data
            return []
        *lines, rest = (bytes(self._rest) + data).split(b"\n")
        self._rest = bytearray(rest)
        return [line for line in lines if line.strip()]

    def end(self) -> list[bytes]:
        """What came after the last newline."""
        return [bytes(self._rest)] if self._rest.strip() else []
