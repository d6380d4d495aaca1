"""Waiting for jobs: one subscription for everybody in a process who waits for an end, or follows a job."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from typing import Any, TypeVar, cast

import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from modelmill.errors import ModelmillError
from modelmill.settings import Settings
from modelmill.store import keys
from modelmill.store.api_store import ApiStore

logger = logging.getLogger(__name__)

SILENCE_S = 15.0
"""A connection that is silent for so long is asked whether it lives, and after as long again dropped."""
ANSWER_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
_ENDED_CHANNEL = keys.ENDED_CHANNEL.encode()
_HOOK = b"- hook"
Waiter = TypeVar("Waiter")


class JobNews:
    """Tells those who wait in this process that their job has ended, or that something happened to it.

    Every terminal write publishes on one channel, what else happens on another, and one connection listens
    to both for all. While it is broken, news is missed; so each new subscription first looks once at every
    job whose end is waited for, and wakes everybody else, to look for themselves.
    """

    def __init__(self, settings: Settings, store: ApiStore) -> None:
        self._store = store
        # A plain connection and no PubSub object: that one subscribes again by itself, and then nobody
        # knows that messages were missed.
        self._pool = redis.asyncio.ConnectionPool.from_url(
            settings.redis_url,
            protocol=2,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=2,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),
        )
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}
        self._following: dict[bytes, set[asyncio.Event]] = {}
        self._at_release: set[asyncio.Future[None]] = set()
        self.waiting = 0
        """How many wait now, or follow a job."""
        self.hooks = asyncio.Event()
        """Set when a webhook may be due: whoever sends them clears it before looking."""
        self._released = False
        self._listening = False
        self._tried = asyncio.Event()
        self._heard_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribes. Without a server it returns all the same, and goes on trying."""
        self._task = asyncio.create_task(self._run())
        await self._tried.wait()

    @property
    def released(self) -> bool:
        """Whether this process is about to end, so that nobody is to wait any more."""
        return self._released

    def watch(self, job_id: str) -> AbstractContextManager[asyncio.Future[None]]:
        """A future that is done when the job ends, from now on: look at the record after, not before.

        It may be done early, so whoever it wakes reads the record to know.
        """
        return self.watch_any((job_id,))

    @contextmanager
    def watch_any(self, job_ids: Iterable[str]) -> Iterator[asyncio.Future[None]]:
        """As ``watch``, for many: done when the first of them ends."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._released:
            future.set_result(None)
        watched = [job_id.encode() for job_id in job_ids]
        for key in watched:
            self._waiting.setdefault(key, set()).add(future)
        self.waiting += 1
        try:
            yield future
        finally:
            self.waiting -= 1
            for key in watched:
                _leave(self._waiting, key, future)

    @contextmanager
    def follow(self, job_id: str) -> Iterator[asyncio.Event]:
        """An event that is set whenever something may have happened to the job, its end included.

        Clear it first, then look, then wait: so nothing is missed, and much news at once is looked at once.
        """
        news = asyncio.Event()
        if self._released:
            news.set()
        key = job_id.encode()
        self._following.setdefault(key, set()).add(news)
        self.waiting += 1
        try:
            yield news
        finally:
            self.waiting -= 1
            _leave(self._following, key, news)

    @contextmanager
    def watch_release(self) -> Iterator[asyncio.Future[None]]:
        """A future that is done once nobody is to wait any more: for whoever waits for something else."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._released:
            future.set_result(None)
        self._at_release.add(future)
        try:
            yield future
        finally:
            self._at_release.discard(future)

    def release(self) -> None:
        """Wakes everybody, now and from now on: this process is about to end."""
        self._released = True
        for job_id in self._waiting:
            self._end(job_id)
        for future in self._at_release:
            if not future.done():
                future.set_result(None)
        self._wake_followers()

    async def close(self) -> None:
        self.release()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        told = False
        while True:
            try:
                await self._listen()
            except (RedisError, ModelmillError, OSError) as error:
                problem: Exception = error
            except Exception as error:
                logger.exception("the subscription to news of jobs failed")
                problem = error
            if self._listening:
                pause_s, told = FIRST_PAUSE_S, False
            if not told:
                logger.warning("not subscribed to news of jobs, trying again: %s", problem)
                told = True
            self._listening = False
            self._tried.set()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _listen(self) -> None:
        """Subscribes, catches up, and passes news on until the connection breaks."""
        connection = cast("Any", self._pool).make_connection()
        try:
            await connection.connect()
            channels = (keys.ENDED_CHANNEL, keys.NEWS_CHANNEL)
            await connection.send_command("SUBSCRIBE", *channels)
            for _ in channels:
                if await connection.read_response(timeout=ANSWER_S, push_request=True) is None:
                    raise RedisConnectionError("no answer to SUBSCRIBE")
            await self._catch_up()
            self._listening = True
            self._tried.set()
            reading = asyncio.create_task(self._read(connection))
            try:
                await self._keep_alive(connection, reading)
            finally:
                reading.cancel()
                await asyncio.wait((reading,))
        finally:
            await connection.disconnect(nowait=True)

    async def _read(self, connection: Any) -> None:
        while True:
            # Without a time limit of its own: it would cost a timer for each message.
            reply = await connection.read_response(timeout=math.inf, push_request=True)
            self._heard_at = time.monotonic()
            if reply[0] != b"message":
                continue
            if reply[1] == _ENDED_CHANNEL:
                for line in reply[2].split(b"\n"):
                    self._end(line.partition(b" ")[0])
            else:
                self._tell(reply[2])

    async def _keep_alive(self, connection: Any, reading: asyncio.Task[None]) -> None:
        """Returns never; raises what ended the reading, or that the connection has fallen silent."""
        self._heard_at = asked_at = time.monotonic()
        while True:
            await asyncio.wait((reading,), timeout=SILENCE_S)
            if reading.done():
                await reading
            if self._heard_at < asked_at:
                # This process may itself have been away for so long: the answer may lie there unread.
                await asyncio.wait((reading,), timeout=SILENCE_S / 10)
                if self._heard_at < asked_at:
                    raise RedisConnectionError("the subscription has fallen silent")
            if time.monotonic() - self._heard_at >= SILENCE_S:
                asked_at = time.monotonic()
                await connection.send_command("PING")

    async def _catch_up(self) -> None:
        """Wakes those whose job ended while nobody listened, and whoever looks for themselves."""
        self._wake_followers()
        self.hooks.set()
        for job_id in await self._store.ended([job_id.decode() for job_id in self._waiting]):
            self._end(job_id.encode())

    def _end(self, job_id: bytes) -> None:
        for future in self._waiting.get(job_id, ()):
            if not future.done():
                future.set_result(None)
        for news in self._following.get(job_id, ()):
            news.set()

    def _tell(self, lines: bytes) -> None:
        """Passes on what scripts tell of at once: ``{id} {event}`` a line, and ``- hook`` as the last."""
        if lines.endswith(_HOOK):
            self.hooks.set()
        # Every job that starts is told of, and most are followed by nobody.
        if not self._following:
            return
        for line in lines.split(b"\n"):
            for news in self._following.get(line.partition(b" ")[0], ()):
                news.set()

    def _wake_followers(self) -> None:
        for followers in self._following.values():
            for news in followers:
                news.set()


def _leave(waiting: dict[bytes, set[Waiter]], key: bytes, waiter: Waiter) -> None:
    waiters = waiting.get(key)
    if waiters is not None:
        waiters.discard(waiter)
        if not waiters:
            del waiting[key]
