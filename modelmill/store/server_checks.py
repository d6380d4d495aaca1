"""Checks how the Redis server of the job store is set up: whether it keeps what it acknowledges."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, cast

import redis

from modelmill.errors import ConfigError
from modelmill.store.connection import StoreConnection, translated

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0
OLDEST_VERSION = 7
CHECK_EVERY_S = 60.0


class StoreWarningCode(StrEnum):
    """What may be wrong with the server."""

    EVICTION = "eviction"
    """Its ``maxmemory-policy`` deletes keys when memory is full."""
    NO_APPEND_ONLY_FILE = "no_append_only_file"
    """A crash or a restart loses jobs that were accepted."""
    NO_FSYNC = "no_fsync"
    """It leaves it to the operating system when the append-only file reaches the disk."""
    NO_MEMORY_LIMIT = "no_memory_limit"
    """Jobs are accepted until the machine has no memory left."""
    OLD_VERSION = "old_version"
    """It is older than the versions that this release is tested with."""
    REPLICA = "replica"
    """It is a replica, which takes no jobs."""
    CLUSTER = "cluster"
    """It is part of a cluster, where one script cannot reach all keys."""


@dataclass(frozen=True, slots=True)
class StoreWarning:
    """One thing that is wrong with the server, and what to do."""

    code: StoreWarningCode
    message: str


REFUSED = frozenset({StoreWarningCode.EVICTION, StoreWarningCode.CLUSTER})
"""With these, API and workers do not start."""


def check_server(redis_url: str, *, allow_eviction: bool) -> list[StoreWarning]:
    """What is wrong with the server. API and worker call it once, at start.

    If the server does not answer or does not tell, nothing is checked.

    Args:
        redis_url: The server.
        allow_eviction: Whether eviction is a warning, not a reason to refuse the server.

    Raises:
        ConfigError: the server loses jobs by its settings, or cannot run the scripts.
    """
    try:
        with redis.Redis.from_url(
            redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=None
        ) as client:
            found = warnings_of(cast("Mapping[str, Any]", client.info()), _fsync(client))
    except redis.ResponseError as error:
        logger.info("the settings of the job store could not be checked: %s", error)
        return []
    except redis.RedisError:
        return []  # check_layout has told it
    for warning in found:
        if warning.code in REFUSED and not (warning.code is StoreWarningCode.EVICTION and allow_eviction):
            raise ConfigError(warning.message)
    return found


def warnings_of(info: Mapping[str, Any], fsync: str | None = None) -> list[StoreWarning]:
    """What is wrong with a server, worst first.

    Args:
        info: The answer of INFO. A field that a server hides is not checked.
        fsync: Its ``appendfsync``; None if it does not tell.
    """
    found: list[StoreWarning] = []

    def warn(code: StoreWarningCode, message: str) -> None:
        found.append(StoreWarning(code, message))

    if info.get("redis_mode") == "cluster" or info.get("cluster_enabled") == 1:
        warn(
            StoreWarningCode.CLUSTER,
            "The job store is part of a cluster, and Modelmill needs one primary: name a server without "
            "cluster mode in MODELMILL_REDIS_URL.",
        )
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        warn(
            StoreWarningCode.EVICTION,
            f"The job store has maxmemory-policy {policy}, so it deletes jobs when its memory is full. Set "
            "the policy to noeviction, or accept the loss with MODELMILL_ALLOW_EVICTION=true.",
        )
    if info.get("role") == "slave":
        warn(
            StoreWarningCode.REPLICA,
            "The job store is a replica, which takes no jobs: name its primary in MODELMILL_REDIS_URL.",
        )
    if info.get("aof_enabled") == 0:
        warn(
            StoreWarningCode.NO_APPEND_ONLY_FILE,
            "The job store has appendonly no, so a crash or a restart of it loses accepted jobs. Set "
            "appendonly to yes.",
        )
    elif fsync == "no":
        warn(
            StoreWarningCode.NO_FSYNC,
            "The job store has appendfsync no, so a crash of its machine loses the jobs of the last half "
            "minute. Set appendfsync to everysec or always.",
        )
    if info.get("maxmemory") == 0:
        warn(
            StoreWarningCode.NO_MEMORY_LIMIT,
            "The job store has no maxmemory, so jobs are accepted until its machine has no memory left. Set "
            "maxmemory below the memory of the machine.",
        )
    version = str(info.get("redis_version", ""))
    major = version.partition(".")[0]
    if major.isdecimal() and int(major) < OLDEST_VERSION:
        warn(
            StoreWarningCode.OLD_VERSION,
            f"The job store has version {version}, and Modelmill is tested with version {OLDEST_VERSION} "
            "and newer.",
        )
    return found


class ServerWatch:
    """Checks the server for a running API, at most once a minute."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection
        self._lock = asyncio.Lock()
        self._found: list[StoreWarning] = []
        self._checked_at: float | None = None

    async def warnings(self) -> list[StoreWarning]:
        """What is wrong with the server. Empty if it does not tell.

        Raises:
            ModelmillError: it does not answer.
        """
        async with self._lock:
            now = time.monotonic()
            if self._checked_at is None or now >= self._checked_at + CHECK_EVERY_S:
                self._found = await self._check()
                # A replica may become the primary at any moment.
                is_replica = any(each.code is StoreWarningCode.REPLICA for each in self._found)
                self._checked_at = None if is_replica else now
            return self._found

    async def _check(self) -> list[StoreWarning]:
        client = cast("Any", self._connection.pooled)
        async with translated():
            try:
                info = await client.info()
            except redis.ResponseError:
                return []
            try:
                fsync = fsync_of(await client.config_get("appendfsync"))
            except redis.ResponseError:
                fsync = None
        return warnings_of(info, fsync)


def _fsync(client: redis.Redis) -> str | None:
    try:
        answer = cast("Mapping[Any, Any]", client.config_get("appendfsync"))
    except redis.ResponseError:
        return None  # managed servers hide it
    return fsync_of(answer)


def fsync_of(answer: Mapping[Any, Any]) -> str | None:
    """The policy in an answer of ``CONFIG GET appendfsync``; None if it is not there."""
    value = answer.get("appendfsync", answer.get(b"appendfsync"))
    return value.decode() if isinstance(value, bytes) else value
