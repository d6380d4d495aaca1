"""The version of the key layout. An old process must not work on keys that a later release has changed."""

from __future__ import annotations

import logging
from typing import cast

import redis

from modelmill.errors import ConfigError
from modelmill.store import keys
from modelmill.store.arguments import pack
from modelmill.store.scripts import script

logger = logging.getLogger(__name__)

TIMEOUT_S = 2.0


def check_layout(redis_url: str) -> None:
    """Raises the version in Redis to that of this release. API and worker call it once, at start.

    If Redis does not answer, nothing is checked: the process starts and waits for Redis, as it always does.

    Raises:
        ConfigError: Redis holds the keys of a later release.
    """
    try:
        found = _version_in(redis_url)
    except redis.RedisError as error:
        logger.warning("the version of the key layout was not checked: %s", error)
        return
    if found is not None and not (found.isdigit() and int(found) <= keys.LAYOUT_VERSION):
        raise ConfigError(
            f"The job store has version {found.decode(errors='replace')} of the key layout, but this release "
            f"knows only versions up to {keys.LAYOUT_VERSION}: "
            "upgrade this process to the release that wrote it."
        )


def _version_in(redis_url: str) -> bytes | None:
    with redis.Redis.from_url(
        redis_url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S, retry=None
    ) as client:
        try:
            arguments = cast("list[str]", pack("layout", version=keys.LAYOUT_VERSION))
            return cast("bytes", client.eval(script("layout").source, 0, *arguments))
        except redis.ResponseError:
            # A server that refuses to write can still be read.
            return cast("bytes | None", client.get(keys.LAYOUT))
