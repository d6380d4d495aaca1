"""Who sends a request, and what this caller may do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fastapi import Request
from starlette.types import Scope

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import Lane
from modelmill.store import Limits

_CALLER = "modelmill.caller"


@dataclass(frozen=True, slots=True)
class Caller:
    """The sender of a request. Jobs and files belong to their caller; other callers do not find them."""

    id: str
    is_admin: bool = False
    """Whether the caller may start and stop models, and read workers and metrics."""
    lanes: frozenset[Lane] = frozenset(Lane)
    limits: Limits = field(default_factory=Limits)


ANONYMOUS = Caller("anonymous", is_admin=True)
"""Every caller of an API that needs no keys."""


def name_caller(scope: Scope, caller: Caller) -> None:
    """Stores the caller of a request in its scope."""
    scope[_CALLER] = caller


def caller_of(request: Request) -> Caller:
    """Who sent ``request``."""
    caller: Caller = request.scope.get(_CALLER, ANONYMOUS)
    return caller


async def admin_only(request: Request) -> None:
    """A dependency of routes that only admins may use.

    Raises:
        ModelmillError: ``forbidden``.
    """
    if not caller_of(request).is_admin:
        raise ModelmillError(
            ErrorCode.FORBIDDEN,
            "This needs an admin key, as `modelmill keys create NAME --admin` makes them.",
        )


def rate_limit_fields(limits: Limits, remaining: int | None, retry_after_s: float = 0.0) -> dict[str, str]:
    """``RateLimit-Policy`` and ``RateLimit`` (draft-ietf-httpapi-ratelimit-headers-10) after a submit.

    The caller may submit ``q`` jobs in ``w`` seconds, and ``r`` jobs at once. If it submits nothing for ``t``
    seconds, it may submit all ``q`` at once; if ``r`` is 0, the next one is accepted after ``t`` seconds.

    Args:
        limits: The caller's. Without a rate there are no fields.
        remaining: Jobs that may come at once; None if the store did not count, as for a repeated request.
        retry_after_s: If this job was refused: when the next one is accepted.
    """
    if limits.jobs_per_minute is None:
        return {}
    interval_s = 60 / limits.jobs_per_minute
    fields = {"RateLimit-Policy": f'"jobs";q={limits.burst};w={math.ceil(limits.burst * interval_s)}'}
    if remaining is not None:
        wait_s = (limits.burst - remaining) * interval_s if remaining else retry_after_s or interval_s
        fields["RateLimit"] = f'"jobs";r={remaining};t={max(1, math.ceil(wait_s))}'
    return fields
