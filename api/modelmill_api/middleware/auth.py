"""Authentication: API keys, or, without keys, this machine only. Middleware in plain ASGI."""

from __future__ import annotations

import asyncio
import re
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import ip_address

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.store import ApiStore
from modelmill.store.callers import ApiKey, parse_token, proves
from modelmill_api.callers import Caller, name_caller
from modelmill_api.problems import problem_response

PUBLIC_PATHS = frozenset({"/health/live", "/health/ready", "/docs", "/docs/oauth2-redirect", "/openapi.json"})
"""Paths that need no key: whether the API lives, and how to use it."""
PUBLIC_FOLDER = "/static-offline-docs/"
KEY_TTL_S = 2.0
"""How long this process trusts what it has read about a key. A revoked key is refused after that."""
NOTE_USE_S = 60.0
"""How often the last use of a key is written to the store."""
CACHED_KEYS = 1024
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})

_ORIGIN = re.compile(r"https?://[^/\s,?#@*]+")


def is_public(path: str) -> bool:
    """Whether this path needs no key."""
    return path in PUBLIC_PATHS or path.startswith(PUBLIC_FOLDER)


def keys_are_on(settings: Settings) -> bool:
    """Whether callers need an API key.

    Raises:
        ConfigError: they would need none, at an address that other machines reach.
    """
    if settings.auth == "on":
        return True
    if is_loopback(settings.host):
        return False
    if settings.auth == "off" and not settings.allow_no_auth:
        raise ConfigError(
            f"MODELMILL_AUTH is off and MODELMILL_HOST is {settings.host}, where others can reach the API. "
            "Turn API keys on, bind to 127.0.0.1, or, if a proxy in front of it authenticates callers, "
            "set MODELMILL_ALLOW_NO_AUTH=true."
        )
    return settings.auth is None


@lru_cache(maxsize=256)
def is_loopback(host: str) -> bool:
    """Whether this address or name leads to this machine itself, so that others cannot reach it."""
    if host.lower() == "localhost":
        return True
    try:
        address = ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def cors_origins(settings: Settings) -> list[str]:
    """The web pages that may call the API, or ``["*"]``.

    Raises:
        ConfigError: one of them is not an origin.
    """
    origins = [part.strip() for part in settings.cors_origins.split(",") if part.strip()]
    for origin in origins:
        if origin != "*" and not _ORIGIN.fullmatch(origin):
            raise ConfigError(
                f"MODELMILL_CORS_ORIGINS: {origin!r} is not an origin; write https://app.example.com, "
                "without a path, or * for all."
            )
    return origins


def add_cors(app: FastAPI, settings: Settings) -> None:
    """Lets web pages of other origins call the API, if the settings name any."""
    if origins := cors_origins(settings):
        # No credentials: browsers would send cookies, and the API uses none.
        app.add_middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "HEAD", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID", "Prefer"],
            expose_headers=["Location", "Preference-Applied", "RateLimit", "RateLimit-Policy", "Retry-After"],
        )


class Authenticate:
    """Authenticates each request and stores its caller in the scope.

    Raises (when made):
        ConfigError: the settings leave the API open to other machines.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._gate: KeyGate | LocalGate = KeyGate() if keys_are_on(settings) else LocalGate(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not is_public(scope["path"]):
            try:
                await self._gate.check(scope)
            except ModelmillError as error:
                await problem_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class LocalGate:
    """Without keys: accepts requests of this machine, but not of foreign web pages in its browser."""

    def __init__(self, settings: Settings) -> None:
        self._everywhere = settings.allow_no_auth
        self._host = settings.host.lower()
        self._origins = frozenset(cors_origins(settings))

    async def check(self, scope: Scope) -> None:
        """Raises ``forbidden``."""
        hosts, origin, site = [], None, None
        for name, value in scope["headers"]:
            if name == b"host":
                hosts.append(value.decode("latin-1").lower())
            elif name == b"origin":
                origin = value.decode("latin-1")
            elif name == b"sec-fetch-site":
                site = value.decode("latin-1")
        if not self._everywhere:
            _refuse_elsewhere(scope)
            for host in hosts:
                self._refuse_foreign(host)
        if (origin or site) and scope["method"] not in SAFE_METHODS:
            self._refuse_cross_site(hosts, origin, site)

    def _refuse_foreign(self, host: str) -> None:
        # If a page's name was made to point here (DNS rebinding), the request still holds that name.
        name = host_name(host)
        if not is_loopback(name) and name != self._host:
            raise ModelmillError(
                ErrorCode.FORBIDDEN,
                "Without API keys, this server answers only requests to localhost or 127.0.0.1. For other "
                "names, set MODELMILL_AUTH=on, or, behind a proxy that authenticates callers, "
                "MODELMILL_ALLOW_NO_AUTH=true.",
            )

    def _refuse_cross_site(self, hosts: list[str], origin: str | None, site: str | None) -> None:
        # Like Go's net/http.CrossOriginProtection: browsers send one of the two, and few other clients do.
        if site in ("same-origin", "none") or origin in self._origins or "*" in self._origins:
            return
        if site is None and origin is not None and origin.partition("://")[2].lower() in hosts:
            return
        raise ModelmillError(
            ErrorCode.FORBIDDEN,
            "A web page of another origin may not do this. To allow it, name its origin in "
            "MODELMILL_CORS_ORIGINS.",
        )


def _refuse_elsewhere(scope: Scope) -> None:
    """Refuses if the server that runs this application ignores our settings and is reachable from outside."""
    server = scope.get("server")
    # A Unix socket has no port, and the mode of its file decides who can connect.
    if server is not None and server[1] is not None and not is_loopback(server[0]):
        raise ModelmillError(
            ErrorCode.FORBIDDEN,
            "This API needs no API keys, so it answers on loopback only. Set MODELMILL_AUTH=on, or set "
            "MODELMILL_HOST to the address of the server.",
        )


def host_name(host: str) -> str:
    """The name or address in a ``Host`` field, without port and brackets."""
    return host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]


@dataclass(slots=True)
class _Known:
    key: ApiKey | None
    caller: Caller | None
    until: float
    """By the monotonic clock."""
    redis_now: float
    used_at: float
    """When its use was last written to the store, by the clock of Redis."""


@dataclass(slots=True)
class KeyGate:
    """With keys: accepts ``Authorization: Bearer`` with a valid token."""

    _known: OrderedDict[str, _Known] = field(default_factory=OrderedDict)
    # A cache of its own, so that guessed ids do not push out real keys.
    _unknown: OrderedDict[str, _Known] = field(default_factory=OrderedDict)
    _asked: dict[str, asyncio.Task[_Known]] = field(default_factory=dict)

    async def check(self, scope: Scope) -> None:
        """Raises ``unauthenticated``, in the same words for every reason, or ``store_unavailable``."""
        given = [value for name, value in scope["headers"] if name == b"authorization"]
        scheme, _, token = given[0].decode("latin-1").partition(" ") if len(given) == 1 else ("", "", "")
        parsed = parse_token(token.strip()) if scheme.lower() == "bearer" else None
        if parsed is None:
            raise unauthenticated()
        key_id, secret = parsed
        store: ApiStore = scope["app"].state.modelmill.store
        known = await self._find(store, key_id)
        if not proves(secret, known.key) or known.caller is None:
            raise unauthenticated()
        name_caller(scope, known.caller)
        if known.redis_now - known.used_at > NOTE_USE_S:
            known.used_at = known.redis_now
            with suppress(ModelmillError):
                await store.keys.note_use(key_id, known.redis_now)

    async def _find(self, store: ApiStore, key_id: str) -> _Known:
        known = self._known.get(key_id) or self._unknown.get(key_id)
        if known is not None and time.monotonic() < known.until:
            return known
        task = self._asked.get(key_id)
        if task is None:
            task = self._asked[key_id] = asyncio.create_task(self._look_up(store, key_id))
        # If this request is given up, other requests may still wait for the same answer.
        return await asyncio.shield(task)

    async def _look_up(self, store: ApiStore, key_id: str) -> _Known:
        # Taken before the question, so that the answer is never older than this says.
        asked_at = time.monotonic()
        try:
            key, redis_now = await store.keys.look_up(key_id)
        finally:
            del self._asked[key_id]
        caller = Caller(key.id, key.is_admin, key.lanes, key.limits) if key else None
        used_at = (key and key.last_used_at) or 0.0
        known = _Known(key, caller, asked_at + KEY_TTL_S, redis_now, used_at)
        self._known.pop(key_id, None)
        self._unknown.pop(key_id, None)
        cache = self._unknown if key is None else self._known
        cache[key_id] = known
        if len(cache) > CACHED_KEYS:
            cache.popitem(last=False)
        return known


def unauthenticated() -> ModelmillError:
    """The 401 for a missing, wrong or revoked token."""
    return ModelmillError(
        ErrorCode.UNAUTHENTICATED,
        "Send `Authorization: Bearer` with an API key that is valid. `modelmill keys create NAME` makes one.",
        headers={"WWW-Authenticate": "Bearer"},
    )
