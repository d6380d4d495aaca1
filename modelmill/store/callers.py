"""API keys in Redis: the command line makes and revokes them, the API looks them up.

A token is ``mm_<id>_<secret>``. Redis keeps a plain SHA-256 of the secret. The secret has 256 random
bits, which is too many to try, even with a fast hash. Slow hashes are for secrets that people choose
themselves.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import redis

from modelmill.errors import ConfigError
from modelmill.states import Lane
from modelmill.store import keys
from modelmill.store.connection import StoreConnection
from modelmill.store.records import Limits, SubmitReply, Verdict

ID_LENGTH = 12
SECRET_LENGTH = 43
"""Each character is one of 62, which makes 256 bits."""
MAX_NAME_LENGTH = 64

_ID_SIGNS = string.ascii_lowercase + string.digits
_SECRET_SIGNS = string.ascii_letters + string.digits
_TOKEN = re.compile(rf"mm_([a-z0-9]{{{ID_LENGTH}}})_([A-Za-z0-9]{{{SECRET_LENGTH}}})")
_NO_DIGEST = "0" * 64


@dataclass(frozen=True, slots=True)
class ApiKey:
    """An API key, without its secret. Times are seconds since the epoch, by the clock of Redis."""

    id: str
    name: str
    digest: str
    """SHA-256 of the secret, in hexadecimal."""
    created_at: float
    is_admin: bool = False
    lanes: frozenset[Lane] = frozenset(Lane)
    limits: Limits = field(default_factory=Limits)
    revoked_at: float | None = None
    last_used_at: float | None = None
    """Give or take a minute."""

    @classmethod
    def from_hash(cls, key_id: str, fields: Mapping[bytes, bytes]) -> ApiKey | None:
        text = {name.decode(): value.decode() for name, value in fields.items()}
        if "digest" not in text:
            return None
        return cls(
            id=key_id,
            name=text["name"],
            digest=text["digest"],
            created_at=int(text["created_ms"]) / 1000,
            is_admin=text["admin"] == "1",
            lanes=frozenset(Lane(lane) for lane in text["lanes"].split(",")),
            limits=Limits(
                max_jobs=int(text["max_jobs"]) if "max_jobs" in text else None,
                jobs_per_minute=float(text["jobs_per_minute"]) if "jobs_per_minute" in text else None,
                burst=int(text.get("burst", 1)),
            ),
            revoked_at=_seconds(text.get("revoked_ms")),
            last_used_at=_seconds(text.get("last_used_ms")),
        )


def parse_token(token: str) -> tuple[str, str] | None:
    """Id and secret of a token; None if the text cannot be a token."""
    match = _TOKEN.fullmatch(token)
    return (match[1], match[2]) if match else None


def proves(secret: str, key: ApiKey | None) -> bool:
    """Whether ``secret`` is that of ``key``, and the key is not revoked."""
    digest = key.digest if key else _NO_DIGEST
    return hmac.compare_digest(_digest(secret), digest) and key is not None and key.revoked_at is None


class KeyRing:
    """The keys, for an operator. If Redis fails, every method raises ``redis.RedisError``."""

    def __init__(self, redis_url: str) -> None:
        self._redis = redis.Redis.from_url(redis_url, socket_timeout=5, socket_connect_timeout=2, retry=None)

    def __enter__(self) -> KeyRing:
        return self

    def __exit__(self, *_: object) -> None:
        self._redis.close()

    def create(
        self,
        name: str,
        *,
        is_admin: bool = False,
        lanes: frozenset[Lane] = frozenset(Lane),
        limits: Limits | None = None,
    ) -> str:
        """Makes a key.

        Returns:
            Its token. No copy is kept, so it cannot be read again.

        Raises:
            ConfigError: the name is not valid, or another valid key has it.
        """
        if not 1 <= len(name) <= MAX_NAME_LENGTH or not name.isprintable():
            raise ConfigError(f"The name of a key has 1 to {MAX_NAME_LENGTH} printable characters.")
        if any(key.name == name and key.revoked_at is None for key in self.list()):
            raise ConfigError(f"There is a key named {name!r} already. Choose another name, or revoke it.")
        key_id, secret = _random(_ID_SIGNS, ID_LENGTH), _random(_SECRET_SIGNS, SECRET_LENGTH)
        limits = limits or Limits()
        fields: dict[str, str | int | float] = {
            "name": name,
            "digest": _digest(secret),
            "created_ms": self._now_ms(),
            "admin": int(is_admin),
            "lanes": ",".join(sorted(lanes)),
        }
        if limits.max_jobs is not None:
            fields["max_jobs"] = limits.max_jobs
        if limits.jobs_per_minute is not None:
            fields |= {"jobs_per_minute": limits.jobs_per_minute, "burst": limits.burst}
        with self._redis.pipeline(transaction=True) as pipe:
            pipe.hset(keys.KEY + key_id, mapping=cast("Any", fields))
            pipe.sadd(keys.KEYS, key_id)
            pipe.execute()
        return f"mm_{key_id}_{secret}"

    def list(self) -> list[ApiKey]:
        """All keys, oldest first, also revoked ones."""
        ids = sorted(found.decode() for found in cast("set[bytes]", self._redis.smembers(keys.KEYS)))
        with self._redis.pipeline(transaction=False) as pipe:
            for key_id in ids:
                pipe.hgetall(keys.KEY + key_id)
            hashes = pipe.execute() if ids else []
        found = (ApiKey.from_hash(key_id, fields) for key_id, fields in zip(ids, hashes, strict=True))
        return sorted((key for key in found if key is not None), key=lambda key: key.created_at)

    def revoke(self, id_or_name: str) -> ApiKey:
        """Revokes a key. This cannot be undone. Jobs of the key go on.

        Raises:
            ConfigError: no valid key has this id or name.
        """
        valid = [key for key in self.list() if key.revoked_at is None]
        named = [key for key in valid if key.id == id_or_name] or [
            key for key in valid if key.name == id_or_name
        ]
        if not named:
            raise ConfigError(f"No valid key has the id or name {id_or_name!r}. See: modelmill keys list")
        self._redis.hset(keys.KEY + named[0].id, "revoked_ms", str(self._now_ms()))
        return named[0]

    def _now_ms(self) -> int:
        seconds, micros = self._redis.time()
        return seconds * 1000 + micros // 1000


class KeyStore:
    """The keys and the limits of their callers, for the API. If Redis fails, it raises ``ModelmillError``."""

    def __init__(self, connection: StoreConnection) -> None:
        self._connection = connection

    async def look_up(self, key_id: str) -> tuple[ApiKey | None, float]:
        """The key with this id, and the time in seconds by the clock of Redis."""
        fields, (seconds, micros) = await self._connection.read(("HGETALL", keys.KEY + key_id), ("TIME",))
        return ApiKey.from_hash(key_id, fields), int(seconds) + int(micros) / 1e6

    async def note_use(self, key_id: str, now: float) -> None:
        """Records that a key was used."""
        await self._connection.read(("HSET", keys.KEY + key_id, "last_used_ms", round(now * 1000)))

    async def over_limit(self, caller: str, limits: Limits) -> SubmitReply | None:
        """The refusal that ``submit.lua`` would give a job because of the caller's limits; None if it
        would not."""
        if limits.max_jobs is None and limits.jobs_per_minute is None:
            return None
        unfinished, due_ms, (seconds, micros) = await self._connection.read(
            ("HGET", keys.OPEN, caller), ("GET", keys.RATE + caller), ("TIME",)
        )
        if limits.max_jobs is not None and int(unfinished or 0) >= limits.max_jobs:
            return SubmitReply(Verdict.QUOTA_FULL, "", bell=False, retry_after_s=1.0)
        if limits.jobs_per_minute is not None:
            early_s = float(due_ms or 0) / 1000 - (int(seconds) + int(micros) / 1e6)
            wait_s = early_s - (limits.burst - 1) * 60 / limits.jobs_per_minute
            if wait_s > 0:
                return SubmitReply(Verdict.RATE_LIMITED, "", bell=False, retry_after_s=wait_s, remaining=0)
        return None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()


def _random(signs: str, length: int) -> str:
    return "".join(secrets.choice(signs) for _ in range(length))


def _seconds(ms: str | None) -> float | None:
    return None if ms is None else int(ms) / 1000
