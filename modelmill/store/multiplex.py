"""Commands of many callers over one connection. All commands of one turn of the event loop are sent together.

With a pool, each caller has a connection of its own, and pays for its own system calls, timers and
wake-ups. Redis answers in order, so one connection can serve all callers: each reply goes to the oldest
call.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import redis.asyncio
from hiredis import pack_command
from redis.asyncio.retry import Retry
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

Command = tuple[str | bytes | int | float, ...]


class _Call:
    """The commands of one caller, whose replies are returned together."""

    __slots__ = ("missing", "packed", "replies", "reply", "sent_at")

    def __init__(self, packed: list[bytes], reply: asyncio.Future[list[Any]]) -> None:
        self.packed = packed
        self.reply = reply
        self.sent_at = 0.0
        self.replies: list[Any] = []
        self.missing = len(packed)


class Multiplexer:
    """One connection. It is made at the first call, and again after it broke.

    Args:
        pool: Makes the connection; its settings apply. It must have no ``socket_timeout``: redis-py
            would start a timer for each read and a task for each write.
        retry: If the connection breaks, how often and after which pauses a call is sent again. So only
            commands that may be replayed can be sent here.
        answer_s: After this wait for a reply, give or take a tenth, the connection counts as broken.
    """

    def __init__(self, pool: redis.asyncio.ConnectionPool, retry: Retry, answer_s: float) -> None:
        self._pool = pool
        self._retry = retry
        self._answer_s = answer_s
        self._outgoing: deque[_Call] = deque()
        self._awaited: deque[_Call] = deque()
        self._to_write = asyncio.Event()
        self._to_read = asyncio.Event()
        self._session: asyncio.Task[None] | None = None

    async def execute(self, *commands: Command) -> list[Any]:
        """Sends ``commands`` in order and returns their replies. The reply to a refused one is a
        ``ResponseError``.

        Raises:
            RedisError: the server could not be reached, or did not answer.
        """
        packed = [pack_command(cast("Any", command)) for command in commands]

        async def attempt() -> list[Any]:
            call = _Call(packed, asyncio.get_running_loop().create_future())
            self._outgoing.append(call)
            self._to_write.set()
            if self._session is None:
                self._session = asyncio.create_task(self._run())
            return await call.reply

        async def failed(_: Exception) -> None:
            """The broken session has cleaned up already."""

        return await self._retry.call_with_retry(attempt, failed)

    async def close(self) -> None:
        """Closes the connection. Calls that still wait fail."""
        if self._session is not None:
            self._session.cancel()
            await asyncio.wait((self._session,))

    async def _run(self) -> None:
        """One connection's life."""
        connection = cast("Any", self._pool).make_connection()
        problem: Exception = RedisConnectionError("the connection was closed")
        try:
            async with asyncio.timeout(self._answer_s):
                await connection.connect()
            tasks = [asyncio.create_task(part(connection)) for part in (self._write, self._read)]
            try:
                done: set[asyncio.Task[None]] = set()
                while not done and not self._is_overdue():
                    # Neither task ever returns; it ends with an error.
                    done, _ = await asyncio.wait(
                        tasks, timeout=self._answer_s / 10, return_when=asyncio.FIRST_COMPLETED
                    )
                problem = _problem(next(iter(done)).exception()) if done else _overdue(self._answer_s)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.wait(tasks)
        except Exception as error:
            problem = _problem(error)
        finally:
            self._session = None
            self._fail_all(problem)
            await connection.disconnect(nowait=True)

    def _is_overdue(self) -> bool:
        oldest = self._awaited[0] if self._awaited else None
        return oldest is not None and time.monotonic() - oldest.sent_at > self._answer_s

    def _fail_all(self, problem: Exception) -> None:
        calls = [*self._awaited, *self._outgoing]
        self._awaited.clear()
        self._outgoing.clear()
        for call in calls:
            if not call.reply.done():
                call.reply.set_exception(problem)

    async def _write(self, connection: Any) -> None:
        while True:
            await self._to_write.wait()
            self._to_write.clear()
            calls = list(self._outgoing)
            self._outgoing.clear()
            now = time.monotonic()
            for call in calls:
                call.sent_at = now
            self._awaited.extend(calls)
            self._to_read.set()
            packed: Sequence[bytes] = [part for call in calls for part in call.packed]
            await connection.send_packed_command(packed, check_health=False)

    async def _read(self, connection: Any) -> None:
        while True:
            while self._awaited:
                try:
                    reply = await connection.read_response(timeout=math.inf)
                except ResponseError as error:
                    reply = error
                call = self._awaited[0]
                call.replies.append(reply)
                call.missing -= 1
                if not call.missing:
                    self._awaited.popleft()
                    if not call.reply.done():
                        call.reply.set_result(call.replies)
            self._to_read.clear()
            await self._to_read.wait()


def _overdue(answer_s: float) -> Exception:
    return RedisTimeoutError(f"no reply within {answer_s:g} s")


def _problem(error: BaseException | None) -> Exception:
    if isinstance(error, RedisError):
        return error
    if isinstance(error, TimeoutError):
        return RedisTimeoutError(str(error))
    return RedisConnectionError(str(error) or type(error).__name__)
