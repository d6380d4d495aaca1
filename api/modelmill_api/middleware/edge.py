"""The outermost layer: what every request and every answer has in common."""

from __future__ import annotations

import base64
import hashlib
import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

PAGES = frozenset({"/docs", "/docs/oauth2-redirect"})
ASSETS = "/static-offline-docs/"

_NO_SNIFFING = (b"x-content-type-options", b"nosniff")
_NO_STORE = (b"cache-control", b"no-store")
_PRIVATE = (_NO_SNIFFING, _NO_STORE)
_ASSET = (_NO_SNIFFING,)
_INLINE_SCRIPT = re.compile(rb"<script>(.*?)</script>", re.DOTALL)


class Edge:
    """Takes a trailing slash from each address, and adds to each answer what browsers and caches must know.

    An address with a slash at its end is the same as the one without. A redirect would not do: many clients
    do not follow it, and lose the body of a POST.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path = scope["path"]
        if path[-1:] == "/" and len(path) > 1:
            path = scope["path"] = path.rstrip("/") or "/"
            scope["raw_path"] = scope.get("raw_path", b"").rstrip(b"/") or b"/"
        if path in PAGES:
            await self._app(scope, receive, _page(send))
            return
        added = _ASSET if path.startswith(ASSETS) else _PRIVATE

        async def finish(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *added]
            await send(message)

        await self._app(scope, receive, finish)


def _page(send: Send) -> Send:
    """Sends a page with a policy that allows its own inline scripts, and no others."""
    start: Message = {}

    async def finish(message: Message) -> None:
        nonlocal start
        if message["type"] == "http.response.start":
            # The page comes in one piece; its policy depends on it.
            start = message
            return
        if start:
            policy = (b"content-security-policy", _policy_of(message.get("body", b"")))
            start["headers"] = [*start["headers"], *_PRIVATE, policy]
            await send(start)
            start = {}
        await send(message)

    return finish


def _policy_of(page: bytes) -> bytes:
    digests = (hashlib.sha256(script).digest() for script in _INLINE_SCRIPT.findall(page))
    hashes = "".join(f" 'sha256-{base64.b64encode(digest).decode()}'" for digest in digests)
    return (
        f"default-src 'none'; script-src 'self'{hashes}; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data:; font-src 'self' data:; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ).encode()
