"""Carries out the steps of flows, by blocking (``httpx.Client``) or by awaiting (``httpx.AsyncClient``)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import httpx
from httpx_sse import EventSource

from modelmill import __version__, http_client
from modelmill.client.events import Event
from modelmill.client.protocol import (
    Call,
    Flow,
    Listen,
    Pause,
    RetryPolicy,
    RunBlocking,
    Send,
    Step,
)
from modelmill.errors import ConfigError
from modelmill.ndjson import LineSplitter

DEFAULT_URL = "http://127.0.0.1:8000"
MIB = 1024 * 1024

T = TypeVar("T")


@dataclass(frozen=True)
class Connection:
    """The arguments of a client, completed from the environment."""

    url: str = field(repr=False)  # it may hold a password
    api_key: str | None = field(repr=False)
    timeout_s: float
    max_retries: int
    upload_over_bytes: int

    @classmethod
    def make(
        cls,
        url: str | None,
        *,
        api_key: str | None = None,
        timeout_s: float,
        max_retries: int = 0,
        upload_over_bytes: int = 0,
    ) -> Connection:
        """Reads what is left out from the environment.

        Raises:
            ConfigError: the URL, or the key of the environment, cannot be used.
            ValueError: the key that was given cannot be used.
        """
        key = (os.environ.get("MODELMILL_API_KEY") if api_key is None else api_key) or ""
        key = key.strip()
        if not all(33 <= ord(character) < 127 for character in key):
            if api_key is not None:
                raise ValueError("The API key holds a character that is not allowed in a key.")
            raise ConfigError("MODELMILL_API_KEY holds a character that is not allowed in a key.")
        if (url or "").strip():
            where = http_client.checked_url(str(url), "The URL of the server")
        else:
            where = http_client.checked_url(
                os.environ.get("MODELMILL_URL", "").strip() or DEFAULT_URL, "MODELMILL_URL"
            )
        return cls(where, key or None, timeout_s, max(0, max_retries), upload_over_bytes)

    @property
    def arguments(self) -> dict[str, Any]:
        """The arguments of ``http_client.make_client`` and ``make_async_client``."""
        key = {"Authorization": f"Bearer {self.api_key}"} if self.api_key else {}
        return {
            "url": self.url,
            "headers": {"User-Agent": f"modelmill-python/{__version__}", **key},
            "timeout": self.timeout_s,
            # The caller chooses how many requests run at once. With a limit, waiting requests would time out.
            "limits": httpx.Limits(max_connections=None, max_keepalive_connections=64),
        }

    def policy(self, url: httpx.URL) -> RetryPolicy:
        return RetryPolicy(url, self.max_retries)


class Wire:
    """Carries out steps by blocking. Several threads may use it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.http = http_client.make_client(**connection.arguments)
        self.policy = connection.policy(self.http.base_url)

    def run(self, flow: Flow[T]) -> T:
        """Runs a flow to its end, and returns its result."""
        try:
            step = next(flow)
            while True:
                try:
                    given = self._do(step)
                except Exception as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(given)
        except StopIteration as end:
            return cast("T", end.value)
        finally:
            flow.close()

    def stream(self, step: Listen) -> Iterator[Event]:
        """The events of one stream. Afterwards, the cursor says how it ended.

        Raises:
            httpx.TransportError: the stream broke off, or ``until`` has passed.
        """
        step.cursor.begin()
        with self.http.stream(**_arguments(step.call, self.connection, step.until)) as response:
            if not step.cursor.accept(response):
                response.read()
                step.cursor.refuse(response)
                return
            for sent in EventSource(_timed(response, step.until)).iter_sse():
                event = step.cursor.take(sent)
                if event is not None:
                    yield event
                if step.cursor.is_over:
                    return

    def _do(self, step: Step) -> Any:
        if isinstance(step, Pause):
            return time.sleep(step.seconds)
        if isinstance(step, RunBlocking):
            return step.function()
        if isinstance(step, Listen):
            for _ in self.stream(step):
                pass
            return None
        with ExitStack() as opened:
            arguments = _arguments(step.call, self.connection, opened=opened)
            if isinstance(step, Send):
                return self.http.request(**arguments)
            with self.http.stream(**arguments) as response:
                self._read(response, step.lines)
                return response

    def _read(self, response: httpx.Response, lines: list[bytes]) -> None:
        if not response.is_success:
            response.read()
            return
        splitter = LineSplitter()
        try:
            for data in response.iter_bytes():
                lines.extend(filter(None, splitter.feed(data)))
        except httpx.TransportError:
            if not lines:
                raise
        else:
            lines.extend(filter(None, splitter.end()))


class AsyncWire:
    """Carries out steps by awaiting, for asyncio."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.http = http_client.make_async_client(**connection.arguments)
        self.policy = connection.policy(self.http.base_url)

    async def run(self, flow: Flow[T]) -> T:
        """Runs a flow to its end, and returns its result."""
        try:
            step = next(flow)
            while True:
                try:
                    given = await self._do(step)
                except Exception as error:
                    step = flow.throw(error)
                else:
                    step = flow.send(given)
        except StopIteration as end:
            return cast("T", end.value)
        finally:
            flow.close()

    async def stream(self, step: Listen) -> AsyncGenerator[Event, None]:
        """The events of one stream. Afterwards, the cursor says how it ended.

        Raises:
            httpx.TransportError: the stream broke off, or ``until`` has passed.
        """
        step.cursor.begin()
        async with self.http.stream(**_arguments(step.call, self.connection, step.until)) as response:
            if not step.cursor.accept(response):
                await response.aread()
                step.cursor.refuse(response)
                return
            async with aclosing(EventSource(_timed(response, step.until)).aiter_sse()) as stream:
                async for sent in stream:
                    event = step.cursor.take(sent)
                    if event is not None:
                        yield event
                    if step.cursor.is_over:
                        return

    async def _do(self, step: Step) -> Any:
        if isinstance(step, Pause):
            return await asyncio.sleep(step.seconds)
        if isinstance(step, RunBlocking):
            return await asyncio.to_thread(step.function)
        if isinstance(step, Listen):
            async with aclosing(self.stream(step)) as events:
                async for _ in events:
                    pass
            return None
        with ExitStack() as opened:
            arguments = _arguments(step.call, self.connection, opened=opened)
            if isinstance(step.call.content, list | tuple):
                arguments["content"] = _pieces(step.call.content)
            if isinstance(step, Send):
                return await self.http.request(**arguments)
            async with self.http.stream(**arguments) as response:
                await self._read(response, step.lines)
                return response

    async def _read(self, response: httpx.Response, lines: list[bytes]) -> None:
        if not response.is_success:
            await response.aread()
            return
        splitter = LineSplitter()
        try:
            async for data in response.aiter_bytes():
                lines.extend(filter(None, splitter.feed(data)))
        except httpx.TransportError:
            if not lines:
                raise
        else:
            lines.extend(filter(None, splitter.end()))


def _arguments(
    call: Call, connection: Connection, until: float | None = None, opened: ExitStack | None = None
) -> dict[str, Any]:
    """The arguments of httpx for a call. ``opened`` closes the files that are opened for it."""
    read_s = connection.timeout_s + call.extra_s
    if until is not None:
        read_s = min(read_s, max(until - time.monotonic(), 0.1))
    arguments: dict[str, Any] = {
        "method": call.method,
        "url": call.path,
        "params": dict(call.params) or None,
        "headers": dict(call.headers),
        "timeout": httpx.Timeout(connection.timeout_s, read=read_s),
    }
    if call.payload is not None:
        stream = call.payload.open()
        if opened is not None and not call.payload.is_borrowed:
            opened.enter_context(stream)
        arguments["files"] = {"file": (call.payload.name, stream, call.payload.media_type)}
    elif call.content is not None:
        arguments["content"] = call.content
    return arguments


async def _pieces(pieces: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


class _Timed:
    """The parts of a response that ``EventSource`` uses. It ends at ``until``, even if comments arrive."""

    def __init__(self, response: httpx.Response, until: float) -> None:
        self.headers = response.headers
        self._response = response
        self._until = until

    def iter_text(self) -> Iterator[str]:
        for text in self._response.iter_text():
            self._check()
            yield text

    async def aiter_text(self) -> AsyncIterator[str]:
        async with aclosing(cast("Any", self._response.aiter_text())) as pieces:
            async for text in pieces:
                self._check()
                yield text

    def _check(self) -> None:
        if time.monotonic() >= self._until:
            raise httpx.ReadTimeout("The time limit for listening has passed.")


def _timed(response: httpx.Response, until: float | None) -> httpx.Response:
    return response if until is None else cast("httpx.Response", _Timed(response, until))
