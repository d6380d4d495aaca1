"""HEAD wherever there is GET, as RFC 9110, section 9.1, asks of every server."""

from __future__ import annotations

import re

from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

_STREAM = re.compile(r"/jobs/[^/]+/events$")
"""A stream of events has no end that a HEAD could wait for."""


def takes(scope: Scope, method: str) -> bool:
    """Whether a request by this method is answered at the address of this one."""
    if method == "HEAD" and not _STREAM.search(scope["path"]) and _has_route(scope, "GET"):
        return True
    return _has_route(scope, method)


def _has_route(scope: Scope, method: str) -> bool:
    asked = {**scope, "method": method}
    return any(route.matches(asked)[0] is Match.FULL for route in scope["app"].routes)


class AnswerHead:
    """Lets the routes of GET answer HEAD, where no route of its own does.

    The server leaves the content out: it knows what it was asked.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = dict(scope)
        if takes(scope, "HEAD") and not _has_route(scope, "HEAD"):
            inner["method"] = "GET"
        try:
            await self._app(inner, receive, send)
        finally:
            # The route, for whoever counts requests further out.
            scope.update(inner, method="HEAD")
