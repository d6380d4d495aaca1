"""Which HTTP methods an address takes. It takes HEAD wherever it takes GET (RFC 9110, section 9.1)."""

from __future__ import annotations

import re

from starlette.routing import Match
from starlette.types import Scope

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")

_STREAM = re.compile(r"/jobs/[^/]+/events$")
"""A stream of events has no end that a HEAD could wait for."""


def allows_method(scope: Scope, method: str) -> bool:
    """Whether the address of this request takes ``method``."""
    if method == "HEAD" and not _STREAM.search(scope["path"]) and has_route(scope, "GET"):
        return True
    return has_route(scope, method)


def has_route(scope: Scope, method: str) -> bool:
    """Whether a route of its own takes ``method`` at the address of this request."""
    asked = {**scope, "method": method}
    return any(route.matches(asked)[0] is Match.FULL for route in scope["app"].routes)
