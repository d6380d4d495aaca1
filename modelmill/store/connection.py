"""The connections of the API's store: commands and scripts sent, and errors of Redis turned into our own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import redis.asyncio
from redis.backoff import ExponentialBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError, OutOfMemoryError, ReadOnlyError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.store import scripts
from modelmill.store.arguments import Argument
from modelmill.store.end_log import log_unreported_ends
from modelmill.store.multiplex import Command, Multiplexer
from modelmill.store.server_errors import is_temporary


class StoreConnection:
    """The connections that the parts of ``ApiStore`` share.

    Its methods raise ``ModelmillError``: ``store_unavailable`` or ``store_full``. Code that uses
    ``shared`` or ``pooled`` itself does so within ``translated``.
    """

    def __init__(self, settings: Settings) -> None:
        retry = redis.asyncio.retry.Retry(ExponentialBackoff(cap=0.2, base=0.02), retries=2)
        # This pool lets callers wait for a connection. The plain one refuses the 101st caller.
        pool = redis.asyncio.BlockingConnectionPool.from_url(
            settings.redis_url,
            max_connections=64,
            protocol=3,
            timeout=10,
            socket_timeout=5,
            socket_connect_timeout=2,
            health_check_interval=30,
            retry=retry,
        )
        self.pooled = redis.asyncio.Redis.from_pool(pool)
        """For rare commands, and for values over ``SHARED_BYTES``."""
        plain = redis.asyncio.ConnectionPool.from_url(
            settings.redis_url,
            protocol=3,
            socket_timeout=None,
            socket_connect_timeout=2,
            **keepalive(settings.redis_url),
        )
        self.shared = Multiplexer(plain, retry, answer_s=5.0)
        """For the commands that each job costs."""

    async def close(self) -> None:
        await self.shared.close()
        await self.pooled.aclose()

    async def read(self, *commands: Command) -> list[Any]:
        """The replies to commands, over the shared connection."""
        async with translated():
            replies = await self.shared.execute(*commands)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
            return replies

    async def read_large(self, *commands: Command) -> list[Any]:
        """The replies to commands with large values, over a connection of their own."""
        async with translated():
            pipe = self.pooled.pipeline(transaction=False)
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute()

    async def run_script(self, name: str, arguments: Sequence[Argument]) -> Any:
        """The reply of the Lua script of that name."""
        script = scripts.script(name)
        packed = cast("list[str]", arguments)
        async with translated():
            try:
                return await cast("Any", self.pooled.evalsha(script.sha, 0, *packed))
            except NoScriptError:
                return await cast("Any", self.pooled.eval(script.source, 0, *packed))

    async def run_and_log(self, name: str, arguments: Sequence[Argument]) -> Any:
        """The reply of a script that may end jobs by itself. These ends are logged."""
        reply, ends = await self.run_script(name, arguments)
        log_unreported_ends(scripts.read_unreported_ends(ends))
        return reply


def keepalive(redis_url: str) -> dict[str, Any]:
    """The option that finds a dead network. A connection to a Unix socket does not take it."""
    return {} if redis_url.startswith("unix:") else {"socket_keepalive": True}


@asynccontextmanager
async def translated() -> AsyncIterator[None]:
    """Turns errors of redis-py into errors that a caller of the API can act on."""
    try:
        yield
    except OutOfMemoryError:
        raise ModelmillError(
            ErrorCode.STORE_FULL,
            "The job store is out of memory; nothing was accepted. Try again later.",
            retry_after_s=10,
        ) from None
    except (RedisConnectionError, RedisTimeoutError, ReadOnlyError, OSError) as error:
        raise ModelmillError(
            ErrorCode.STORE_UNAVAILABLE,
            "The job store does not answer. Try again shortly, "
            "with the same Idempotency-Key if you sent one.",
            retry_after_s=2,
        ) from error
    except ResponseError as error:
        # MISCONF and the like: the server answers, but cannot serve.
        if is_temporary(error):
            raise ModelmillError(
                ErrorCode.STORE_UNAVAILABLE, "The job store is not ready. Try again shortly.", retry_after_s=2
            ) from error
        raise
    except RedisError as error:
        raise ModelmillError(
            ErrorCode.STORE_UNAVAILABLE, "The job store does not answer. Try again shortly.", retry_after_s=2
        ) from error
