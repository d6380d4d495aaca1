"""News of jobs: one subscription serves all requests of a process that wait for an end or follow a job."""

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
from modelmill.store.connection import keepalive

logger = logging.getLogger(__name__)

SILENCE_S = 15.0
"""After this time without a message the connection gets a PING; after as long again without one it is
dropped."""
ANSWER_S = 5.0
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.05, 2.0
_ENDED_CHANNEL = keys.ENDED_CHANNEL.encode()
_HOOK = b"- hook"
Waiter = TypeVar("Waiter")


class JobNews:
    """Wakes the requests of this process whose job has ended, or has a new event.

    Terminal writes publish on one channel, all other events on another, and one connection listens to
    both. While it is broken, messages are missed. So after each new subscription, the jobs whose end a
    request waits for are read once, and all followers are woken to read for themselves.
    """

    def __init__(self, settings: Settings, store: ApiStore) -> None:
        self._store = store
        # A plain connection, not a PubSub object: that one subscribes again by itself and does not tell
        # that messages were missed.
        self._pool = redis.asyncio.ConnectionPool.from_url(
            settings.redis_url,
            protocol=2,
            socket_timeout=ANSWER_S,
            socket_connect_timeout=2,
            **keepalive(settings.redis_url),
            retry=Retry(NoBackoff(), 0),
        )
        self._waiting: dict[bytes, set[asyncio.Future[None]]] = {}
        self._following: dict[bytes, set[asyncio.Event]] = {}
        self._at_shutdown: set[asyncio.Future[None]] = set()
        self.waiting = 0
        """How many requests wait for an end or follow a job now."""
        self.webhook_due = asyncio.Event()
        """Set when a webhook may be due. The sender clears it, then reads the outbox."""
        self._shutting_down = False
        self._listening = False
        self._tried = asyncio.Event()
        self._heard_at = 0.0
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Subscribes. If Redis does not answer, it returns all the same and goes on trying."""
        self._task = asyncio.create_task(self._run())
        await self._tried.wait()

    @property
    def is_shutting_down(self) -> bool:
        """Whether this process is about to end, so that no request may wait any longer."""
        return self._shutting_down

    def until_end(self, job_id: str) -> AbstractContextManager[asyncio.Future[None]]:
        """A future that is done when the job ends. Ends before this call are missed: read the record
        after it.

        The future may be done early, so read the record again when it is done.
        """
        return self.until_first_end((job_id,))

    @contextmanager
    def until_first_end(self, job_ids: Iterable[str]) -> Iterator[asyncio.Future[None]]:
        """Like ``until_end``, for many jobs: done when the first of them ends."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._shutting_down:
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
        """An event that is set when the job may have new events, its end included.

        Clear it first, then read, then wait: so no event is missed, and many events at once are read once.
        """
        news = asyncio.Event()
        if self._shutting_down:
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
    def until_shutdown(self) -> Iterator[asyncio.Future[None]]:
        """A future that is done when the server shuts down, for requests that wait for something else."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        if self._shutting_down:
            future.set_result(None)
        self._at_shutdown.add(future)
        try:
            yield future
        finally:
            self._at_shutdown.discard(future)

    def shut_down(self) -> None:
        """This process is about to end: wakes every request that waits, and each later one at once."""
        self._shutting_down = True
        for job_id in self._waiting:
            self._end(job_id)
        for future in self._at_shutdown:
            if not future.done():
                future.set_result(None)
        self._wake_followers()

    async def close(self) -> None:
        self.shut_down()
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        warned = False
        while True:
            try:
                await self._listen()
            except (RedisError, ModelmillError, OSError) as error:
                problem: Exception = error
            except Exception as error:
                logger.exception("the subscription to news of jobs failed")
                problem = error
            if self._listening:
                pause_s, warned = FIRST_PAUSE_S, False
            if not warned:
                logger.warning("not subscribed to news of jobs, trying again: %s", problem)
                warned = True
            self._listening = False
            self._tried.set()
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 2, LONGEST_PAUSE_S)

    async def _listen(self) -> None:
        """Subscribes, catches up, and passes messages on until the connection breaks."""
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
            # No time limit here: it would cost a timer for each message.
            reply = await connection.read_response(timeout=math.inf, push_request=True)
            self._heard_at = time.monotonic()
            if reply[0] != b"message":
                continue
            if reply[1] == _ENDED_CHANNEL:
                for line in reply[2].split(b"\n"):
                    self._end(line.partition(b" ")[0])
            else:
                self._pass_on(reply[2])

    async def _keep_alive(self, connection: Any, reading: asyncio.Task[None]) -> None:
        """Never returns. Raises the error that ended the reading, or that the connection is silent."""
        self._heard_at = asked_at = time.monotonic()
        while True:
            await asyncio.wait((reading,), timeout=SILENCE_S)
            if reading.done():
                await reading
            if self._heard_at < asked_at:
                # This process may itself have stood still for that long, with the answer still unread.
                await asyncio.wait((reading,), timeout=SILENCE_S / 10)
                if self._heard_at < asked_at:
                    raise RedisConnectionError("the subscription is silent")
            if time.monotonic() - self._heard_at >= SILENCE_S:
                asked_at = time.monotonic()
                await connection.send_command("PING")

    async def _catch_up(self) -> None:
        """Wakes requests whose job ended while the connection was broken, and all followers."""
        self._wake_followers()
        self.webhook_due.set()
        for job_id in await self._store.ended([job_id.decode() for job_id in self._waiting]):
            self._end(job_id.encode())

    def _end(self, job_id: bytes) -> None:
        for future in self._waiting.get(job_id, ()):
            if not future.done():
                future.set_result(None)
        for news in self._following.get(job_id, ()):
            news.set()

    def _pass_on(self, lines: bytes) -> None:
        """Passes on the events of one script: ``{id} {event}`` a line, and ``- hook`` as the last line."""
        if lines.endswith(_HOOK):
            self.webhook_due.set()
        # Every job publishes its start, and most jobs have no follower.
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
