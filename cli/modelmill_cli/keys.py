"""``keys create``, ``keys list`` and ``keys revoke``. They use the job store directly, not the API."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import redis

from modelmill.embedded import running_url
from modelmill.errors import ConfigError
from modelmill.settings import Settings, get_settings
from modelmill.states import Lane
from modelmill.store import Limits
from modelmill.store.callers import ApiKey, KeyRing
from modelmill_cli.console import err, make_table, out
from modelmill_cli.joining import running_store


def create_key(
    name: str,
    *,
    is_admin: bool,
    lanes: list[str],
    max_jobs: int | None,
    jobs_per_minute: int | None,
    burst: int | None,
    redis_url: str | None,
    data_dir: Path | None,
    quiet: bool,
) -> None:
    """Makes a key and prints its token, the only text on standard output."""
    if burst is not None and jobs_per_minute is None:
        raise ConfigError(
            "--burst says how many jobs may come at once within a rate: give --jobs-per-minute too."
        )
    unknown = sorted(set(lanes) - set(Lane))
    if unknown:
        raise ConfigError(f"There is no lane {unknown[0]!r}; there are {', '.join(Lane)}.")
    allowed = frozenset(Lane(lane) for lane in lanes) or frozenset(Lane)
    limits = Limits(max_jobs, jobs_per_minute, burst or jobs_per_minute or 1)
    with _keys(redis_url, data_dir) as ring:
        token = ring.create(name, is_admin=is_admin, lanes=allowed, limits=limits)
    if not quiet:
        err.say("This token is shown once and not stored. Send it as `Authorization: Bearer TOKEN`.")
    # Not with rich, which would break the line on a narrow terminal.
    print(token)  # noqa: T201


def list_keys(*, redis_url: str | None, data_dir: Path | None, as_json: bool) -> None:
    """Prints the keys without their tokens."""
    with _keys(redis_url, data_dir) as ring:
        found = ring.list()
    if as_json:
        out.print_json(data=[_as_data(key) for key in found])
        return
    table = make_table("id", "name", "may", "jobs at once", "rate", "made", "last used", "revoked")
    for key in found:
        limits = key.limits
        rate = "" if limits.jobs_per_minute is None else f"{limits.jobs_per_minute:g} a minute"
        table.add_row(
            key.id,
            key.name,
            ("admin, " if key.is_admin else "") + ", ".join(sorted(key.lanes)),
            "" if limits.max_jobs is None else str(limits.max_jobs),
            rate + (f", {limits.burst} at once" if rate else ""),
            *(_time(at) for at in (key.created_at, key.last_used_at, key.revoked_at)),
        )
    out.print(table)


def revoke_key(id_or_name: str, *, redis_url: str | None, data_dir: Path | None) -> None:
    """Revokes a key."""
    with _keys(redis_url, data_dir) as ring:
        key = ring.revoke(id_or_name)
    err.say(f"{key.name} ({key.id}) is revoked. Within 2 seconds every API refuses it.")


def hint_at_first_key(settings: Settings) -> None:
    """Prints how to make a key, if there is none yet. Call it if the API asks for keys."""
    try:
        with KeyRing(settings.redis_url) as ring:
            if any(key.revoked_at is None for key in ring.list()):
                return
    except redis.RedisError:
        return  # The API reports this error itself.
    option = ""
    folder = settings.data_dir
    if folder and running_url(folder) == settings.redis_url and folder != Settings().data_dir:
        option = f" --data-dir {folder}"
    err.say(
        "The API asks for API keys, and there is none yet. Make one:\n"
        f"    modelmill keys create NAME --admin{option}"
    )


@contextmanager
def _keys(redis_url: str | None, data_dir: Path | None) -> Iterator[KeyRing]:
    url = _store_url(redis_url, data_dir)
    try:
        with KeyRing(url) as ring:
            yield ring
    except redis.RedisError as error:
        parts = urlsplit(url)
        raise ConfigError(
            f"The job store at {parts.hostname}:{parts.port or 6379} does not answer as it should "
            f"({type(error).__name__}). Start `modelmill up`, or name the store with MODELMILL_REDIS_URL."
        ) from None


def _store_url(redis_url: str | None, data_dir: Path | None) -> str:
    """The URL of the named store, or else of the store of a running `modelmill up`."""
    found = running_store(redis_url, data_dir)
    return found[0] if found else redis_url or get_settings().redis_url


def _as_data(key: ApiKey) -> dict[str, Any]:
    return {
        "id": key.id,
        "name": key.name,
        "admin": key.is_admin,
        "lanes": sorted(key.lanes),
        **asdict(key.limits),
        "created_at": _time(key.created_at),
        "last_used_at": _time(key.last_used_at) or None,
        "revoked_at": _time(key.revoked_at) or None,
    }


def _time(seconds: float | None) -> str:
    return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
