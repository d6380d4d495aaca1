"""The requests of a backfill: bulk submit, bulk collect, and the pauses while the server does not answer."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import httpx

from modelmill import http_client
from modelmill.client.errors import foreign, problem
from modelmill.client.protocol import growing_pause_s
from modelmill.client.wire import Connection
from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill.ndjson import LineSplitter

COLLECT_IDS = 1000
"""The most ids that one collect may name."""
BACKOFF_S, MAX_BACKOFF_S = 0.05, 5.0
_NDJSON = {"Content-Type": "application/x-ndjson"}


class NoAnswerError(Exception):
    """Raised when a later try may help: no answer, a server error, or a server that asks to wait."""

    def __init__(self, reason: str, *, retry_after_s: float | None = None, is_alive: bool = False) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
        self.is_alive = is_alive
        """Whether a working server answered and asked to wait."""


class TooLargeError(Exception):
    """Raised when the request was refused for its size."""


class Backoff:
    """The pauses between tries, shared by all requests of a run.

    Args:
        give_up_after_s: The run ends when the server has not answered any request for this long.
    """

    def __init__(self, give_up_after_s: float) -> None:
        self._give_up_after_s = give_up_after_s
        self._silent_since: float | None = None
        """When the first request failed since the last answer."""
        self._tries = 0
        self.trouble = ""
        """Why the run waits; empty after an answer."""

    def answered(self) -> None:
        self._silent_since = None
        self._tries = 0
        self.trouble = ""

    async def pause(self, error: NoAnswerError) -> None:
        """Waits before the next try, longer each time.

        Raises:
            ModelmillError: the server has not answered for too long.
        """
        now = time.monotonic()
        if error.is_alive or self._silent_since is None:
            self._silent_since = now
        silent_s = now - self._silent_since
        if silent_s > self._give_up_after_s:
            raise ModelmillError(
                ErrorCode.STORE_UNAVAILABLE,
                f"There was no answer for {silent_s:.0f} s: {error}. Nothing is lost; resume the run later.",
            )
        self.trouble = str(error)
        self._tries += 1
        pause_s = growing_pause_s(
            self._tries, error.retry_after_s, first_s=BACKOFF_S, longest_s=MAX_BACKOFF_S
        )
        await asyncio.sleep(pause_s)


class BulkApi:
    """A connection to one server. Use it as an asynchronous context.

    Args:
        connection: Where the API answers, and the caller's key.
        backoff: Notified of each answer.
    """

    def __init__(self, connection: Connection, backoff: Backoff) -> None:
        self._url = http_client.shown(httpx.URL(connection.url))
        self._backoff = backoff
        # For one request, without the time that the server is asked to wait. A submit may be megabytes.
        self._timeout_s = max(60.0, connection.timeout_s)
        self._http = http_client.make_async_client(**connection.arguments)

    async def __aenter__(self) -> BulkApi:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.aclose()

    async def get(self, path: str) -> Any:
        """The JSON at a path. Waits for a server that does not answer, or that asks to wait.

        Raises:
            ModelmillError: the server refuses this for good, or has not answered for too long.
            ConfigError: no request can be sent to that URL.
        """
        while True:
            try:
                response = await self._http.get(path)
                if not response.is_success:
                    raise _error_of(response)
                self._backoff.answered()
                return response.json()
            except httpx.RequestError as error:
                await self._backoff.pause(self._no_answer(error))
            except NoAnswerError as error:
                await self._backoff.pause(error)
            except TooLargeError as error:
                raise ModelmillError(ErrorCode.BODY_TOO_LARGE, str(error)) from None
            except ValueError:
                raise foreign(response) from None

    def _no_answer(self, error: httpx.RequestError) -> NoAnswerError:
        """The error for a request without an answer.

        Raises:
            ConfigError: no later try can help.
        """
        reason = str(error) or type(error).__name__
        if "CERTIFICATE_VERIFY_FAILED" in reason or "WRONG_VERSION_NUMBER" in reason:
            raise ConfigError(f"no safe connection to {self._url} is possible: {reason}") from None
        return NoAnswerError(f"{self._url} does not answer ({reason})")

    async def bulk(
        self, task: str, model: str, lines: Sequence[bytes]
    ) -> AsyncGenerator[dict[str, Any], None]:
        """Submits jobs. Yields one answer per line, in order; the last answers may be missing.

        Raises:
            NoAnswerError: some lines were not answered. They can be sent again.
            TooLargeError: the request is too large for the server or for a proxy in between.
            ModelmillError: the server refuses this for good.
        """
        # A single line may be as large as a file, so it is not copied.
        body = lines[0] if len(lines) == 1 else b"".join(lines)
        path = f"/api/tasks/{task}/{model}/jobs:bulk"
        async for answer in self._stream(path, body, _NDJSON, self._timeout_s):
            yield answer

    async def collect(self, ids: Sequence[str], wait_s: int) -> AsyncGenerator[dict[str, Any], None]:
        """Yields the documents of the jobs that have ended. The server waits for the first.

        Raises:
            NoAnswerError: the request can be sent again.
            ModelmillError: the server refuses this for good.
        """
        body = json.dumps({"ids": list(ids), "delete": False}).encode()
        headers = {"Content-Type": "application/json", "Prefer": f"wait={wait_s}"}
        async for answer in self._stream("/api/jobs:collect", body, headers, self._timeout_s + wait_s):
            yield answer

    async def delete(self, ids: Sequence[str]) -> None:
        """Deletes jobs on the server.

        Raises:
            NoAnswerError: the request can be sent again.
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
                    raise _error_of(response)
                self._backoff.answered()
                async for line in _lines(response):
                    yield _parsed(line)
        except httpx.RequestError as error:
            raise self._no_answer(error) from None


async def _lines(response: httpx.Response) -> AsyncIterator[bytes]:
    """The lines of an answer. A last line that was cut off is left out."""
    splitter = LineSplitter()
    async for chunk in response.aiter_bytes():
        for line in filter(None, splitter.feed(chunk)):
            yield line
    for line in filter(None, splitter.end()):
        if line.endswith(b"}"):
            yield line


def _parsed(line: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(line)
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise NoAnswerError("the answer was cut off, or is not that of a Modelmill server")
    return answer


def _error_of(response: httpx.Response) -> Exception:
    """The exception for an answer that is not a success."""
    error = problem(response)
    if response.status_code == 413:
        return TooLargeError(error.message)
    if response.status_code == 429:
        after_s = 1.0 if error.retry_after_s is None else error.retry_after_s
        return NoAnswerError(error.message, retry_after_s=after_s, is_alive=True)
    if response.status_code >= 500 or response.status_code == 408:
        return NoAnswerError(error.message, retry_after_s=error.retry_after_s)
    return error
