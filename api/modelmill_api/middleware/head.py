"""Answers HEAD wherever there is GET."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send

from modelmill_api.methods import allows_method, has_route


class AnswerHead:
    """Passes a HEAD request to the route of GET, if no route takes HEAD itself.

    The server leaves the content out, because it knows the method of the request.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        inner = dict(scope)
        if allows_method(scope, "HEAD") and not has_route(scope, "HEAD"):
            inner["method"] = "GET"
        try:
            await self._app(inner, receive, send)
        finally:
            # The middleware further out, which counts requests, needs the route that was found.
            scope.update(inner, method="HEAD")
