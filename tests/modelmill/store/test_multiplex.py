"""One connection for many callers, on a real server that is also killed, stopped and started again."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
import redis
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from modelmill.settings import Settings
from modelmill.store.multiplex import Multiplexer
from tests.support.servers import Valkey


def with_multiplexer(
    url: str,
    act: Callable[[Multiplexer], Coroutine[Any, Any, None]],
    *,
    answer_s: float = 5.0,
    retries: int = 2,
) -> None:
    async def main() -> None:
        pool = redis.asyncio.ConnectionPool.from_url(url, protocol=3, socket_connect_timeout=2)
        shared = Multiplexer(pool, Retry(ConstantBackoff(0.05), retries), answer_s)
        try:
            await act(shared)
        finally:
            await shared.close()

    asyncio.run(main())


def test_each_caller_gets_its_own_replies(settings: Settings, raw_redis: redis.Redis) -> None:
    async def act(shared: Multiplexer) -> None:
        calls = [shared.execute(("ECHO", f"a{n}"), ("ECHO", b"b" * n * 50)) for n in range(300)]
        replies = await asyncio.gather(*calls)
        assert replies == [[f"a{n}".encode(), b"b" * n * 50] for n in range(300)]
        clients = raw_redis.client_list()
        assert sum(client["cmd"] == "echo" for client in clients) == 1

    with_multiplexer(settings.redis_url, act)


def test_a_refused_command_is_a_reply_and_disturbs_no_other_caller(settings: Settings) -> None:
    async def act(shared: Multiplexer) -> None:
        (pong, refused, after), other = await asyncio.gather(
            shared.execute(("PING",), ("NO-SUCH-COMMAND",), ("ECHO", "after")),
            shared.execute(("ECHO", "other")),
        )
        assert (pong, after, other) == (b"PONG", b"after", [b"other"])
        assert isinstance(refused, ResponseError)

    with_multiplexer(settings.redis_url, act)


def test_who_gives_up_waiting_shifts_no_replies(settings: Settings) -> None:
    async def act(shared: Multiplexer) -> None:
        impatient = asyncio.create_task(shared.execute(("ECHO", "impatient")))
        await asyncio.sleep(0)
        impatient.cancel()
        assert await shared.execute(("ECHO", "patient")) == [b"patient"]

    with_multiplexer(settings.redis_url, act)


def test_a_call_whose_connection_breaks_is_sent_again(settings: Settings, raw_redis: redis.Redis) -> None:
    async def act(shared: Multiplexer) -> None:
        (number,) = await shared.execute(("CLIENT", "ID"))
        # Idle: a server may close idle connections after some time.
        raw_redis.client_kill_filter(_id=str(number))
        assert await shared.execute(("ECHO", "again")) == [b"again"]
        # Busy: the reply to a blocking call never comes, and the call is sent again.
        (number,) = await shared.execute(("CLIENT", "ID"))
        blocked = asyncio.create_task(shared.execute(("BLPOP", "nothing", "10")))
        await asyncio.sleep(0.1)
        raw_redis.client_kill_filter(_id=str(number))
        await asyncio.sleep(0.3)
        raw_redis.rpush("nothing", "something")
        assert await blocked == [[b"nothing", b"something"]]

    with_multiplexer(settings.redis_url, act)


def test_a_server_that_does_not_answer_is_an_error_in_time(own_valkey: Valkey) -> None:
    async def act(shared: Multiplexer) -> None:
        await shared.execute(("PING",))
        os.kill(own_valkey.pid, signal.SIGSTOP)
        try:
            started = time.monotonic()
            with pytest.raises(RedisTimeoutError):
                await shared.execute(("PING",))
            assert 0.4 < time.monotonic() - started < 5
        finally:
            os.kill(own_valkey.pid, signal.SIGCONT)
        assert await shared.execute(("PING",)) == [b"PONG"]

    with_multiplexer(own_valkey.url, act, answer_s=0.5, retries=0)


def test_a_server_that_is_away_is_an_error_and_one_that_is_back_is_used(own_valkey: Valkey) -> None:
    async def act(shared: Multiplexer) -> None:
        await shared.execute(("PING",))
        own_valkey.stop()
        for _ in range(2):
            with pytest.raises(RedisError):
                await shared.execute(("PING",))
        own_valkey.start()
        assert await shared.execute(("PING",)) == [b"PONG"]

    with_multiplexer(own_valkey.url, act)


def test_closing_fails_who_still_waits(settings: Settings) -> None:
    async def act(shared: Multiplexer) -> None:
        waiting = asyncio.create_task(shared.execute(("BLPOP", "nothing", "10")))
        await asyncio.sleep(0.1)
        await shared.close()
        with pytest.raises(RedisError):
            await waiting

    with_multiplexer(settings.redis_url, act, retries=0)
