"""What a backfill asks of the server: bulk submit, bulk collect, and patience while it is away."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from modelmill.client.errors import foreign, problem
from modelmill.client.wire import Connection
from modelmill.errors import ErrorCode, ModelmillError

COLLECT_IDS = 1000
"""Ids that one collect may name."""
_NDJSON = {"Content-Type": "application/x-ndjson"}


class NoAnswerError(Exception):
    """Raised when asking again later may help: no answer, a server in trouble, or one that is full."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None, is_alive: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.is_alive = is_alive
        """Whether it was a sound server that asked to wait."""


class TooLargeError(Exception):
    """Raised when the request was refused for its size."""


class Backoff:
    """How long to go on asking, shared by all that ask.

    Args:
        give_up_after_s: Without any answer for so long, the run ends.
    """

    def __init__(self, give_up_after_s: float) -> None:
        self._give_up_after_s = give_up_after_s
        self._answered_at = time.monotonic()
        self._tries = 0
        self.trouble = ""
        """Why nothing goes on; empty after an answer."""

    def answered(self) -> None:
        self._answered_at = time.monotonic()
        self._tries = 0
        self.trouble = ""

    async def pause(self, error: NoAnswerError) -> None:
        """Waits before the next try, longer each time.

        Raises:
            ModelmillError: there was no answer for too long.
        """
        if error.is_alive:
            self._answered_at = time.monotonic()
        silent_s = time.monotonic() - self._answered_at
        if silent_s > self._give_up_after_s:
            raise ModelmillError(
                ErrorCode.STORE_UNAVAILABLE,
                f"There was no answer for {silent_s:.0f} s: {error}. Nothing is lost; resume the run later.",
            )
        self.trouble = str(error)
        self._tries += 1
        longest_s = min(5.0, 0.05 * 2 ** min(self._tries, 10))
        await asyncio.sleep(max(error.retry_after_s or 0, longest_s * random.uniform(0.5, 1)))  # noqa: S311


class BulkApi:
    """A connection to one server. Use it as an asynchronous context.

    Args:
        connection: Where the API answers, and the caller's key.
        patience: Told of each answer.
    """

    def __init__(self, connection: Connection, backoff: Backoff) -> None:
        self._url = connection.url
        self._backoff = backoff
        # For one request, beside what the server is asked to wait: a submit may be megabytes.
        self._timeout_s = max(60.0, connection.timeout_s)
        self._http = httpx.AsyncClient(**connection.arguments)

    async def __aenter__(self) -> BulkApi:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """JSON of the server. The first question, so a server that is not there is told at once."""
        try:
            response = await self._http.get(path)
        except httpx.TransportError as error:
            raise ModelmillError(
                ErrorCode.STORE_UNAVAILABLE, f"{self._url} does not answer ({error or type(error).__name__})"
            ) from None
        if not response.is_success:
            raise problem(response)
        self._backoff.answered()
        try:
            return response.json()
        except ValueError:
            raise foreign(response) from None

    async def bulk(
        self, task: str, model: str, lines: Sequence[bytes]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Submits jobs; one answer each, in their order. They may end early, with the answers lost.

        Raises:
            NoAnswerError: some were not answered; they can be sent again.
            TooLargeError: together they are too large for whatever stands between.
            ModelmillError: the server refuses this for good.
        """
        # A single line may be as large as a file, and is not copied.
        body = lines[0] if len(lines) == 1 else b"".join(lines)
        path = f"/api/tasks/{task}/{model}/jobs:bulk"
        async for answer in self._stream(path, body, _NDJSON, self._timeout_s):
            yield answer

    async def collect(self, ids: Sequence[str], wait_s: int) -> AsyncGenerator[dict[str, Any], None]:
        """Documents of those jobs that have ended; waits for the first.

        Raises:
            NoAnswerError: ask again.
            ModelmillError: the server refuses this for good.
        """
        body = json.dumps({"ids": list(ids), "delete": False}).encode()
        headers = {"Content-Type": "application/json", "Prefer": f"wait={wait_s}"}
        async for answer in self._stream("/api/jobs:collect", body, headers, self._timeout_s + wait_s):
            yield answer

    async def delete(self, ids: Sequence[str]) -> None:
        """Lets the server forget jobs.

        Raises:
            NoAnswerError: ask again.
            ModelmillError: the server refuses this for good.
        """
        body = json.dumps({"ids": list(ids), "delete": True}).encode()
        headers = {"Content-Type": "application/json"}
        async for _ in self._stream("/api/jobs:collect", body, headers, self._timeout_s):
            pass

    async def _stream(
        self, path: str, body: bytes, headers: Mapping[str, str], timeout_s: float
    ) -> AsyncGenerator[dict[str, Any], None]:
        timeout = httpx.Timeout(self._timeout_s, read=timeout_s)
        try:
            async with self._http.stream(
                "POST", path, content=body, headers=headers, timeout=timeout
            ) as response:
                if not response.is_success:
                    await response.aread()
                    raise _trouble(response)
                self._backoff.answered()
                async for line in _lines(response):
                    yield _parsed(line)
        except httpx.TransportError as error:
            reason = f"{self._url} does not answer ({error or type(error).__name__})"
            raise NoAnswerError(reason) from None


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """Lines that end with a newline and with nothing else: what lies between JSON's quotes may hold others.

    A line without an end is one that was cut off, and is left out.
    """
    parts: list[bytes] = []
    async for chunk in response.aiter_bytes():
        first, *others = chunk.split(b"\n")
        parts.append(first)
        if not others:
            continue
        whole = [b"".join(parts), *others[:-1]]
        parts = [others[-1]]
        for line in whole:
            if line.strip():
                yield line
    last = b"".join(parts)
    if last.strip().endswith(b"}"):
        yield last


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswerError("the answer was cut off, or is not that of a Modelmill server")
    return answer


def _trouble(response: httpx.Response) -> Exception:
    """What an answer that is no success means for the run."""
    error = problem(response)
    if response.status_code == 413:
        return TooLargeError(error.message)
    if response.status_code == 429:
        after_s = 1.0 if error.retry_after_s is None else error.retry_after_s
        return NoAnswerError(error.message, retry_after_s=after_s, is_alive=True)
    if response.status_code >= 500 or response.status_code == 408:
        return NoAnswerError(error.message, retry_after_s=error.retry_after_s)
    return error
