"""Who asks, and what they may."""

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
    """Whose request it is. Jobs and files belong to their caller, and nobody else finds them."""

    id: str
    is_admin: bool = False
    """Whether it may start and stop models, and look at workers and metrics."""
    lanes: frozenset[Lane] = frozenset(Lane)
    limits: Limits = field(default_factory=Limits)


ANONYMOUS = Caller("anonymous", is_admin=True)
"""Everybody, where no API keys are asked for."""


def name_caller(scope: Scope, caller: Caller) -> None:
    """Says whose request it is."""
    scope[_CALLER] = caller


def caller_of(request: Request) -> Caller:
    """Who sent ``request``."""
    caller: Caller = request.scope.get(_CALLER, ANONYMOUS)
    return caller


async def admin_only(request: Request) -> None:
    """A dependency of routes that are not for everybody.

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

    ``q`` jobs may come in ``w`` seconds. ``r`` may come at once; all of ``q`` may, when nothing comes for
    ``t`` seconds, and with ``r=0``, the next one.

    Args:
        limits: The caller's; without a rate, there is nothing to tell.
        remaining: Jobs that may come at once; None where nobody counted, as of a repeated request.
        retry_after_s: When the next one may come, if this one was refused.
    """
    if limits.jobs_per_minute is None:
        return {}
    interval_s = 60 / limits.jobs_per_minute
    fields = {"RateLimit-Policy": f'"jobs";q={limits.burst};w={math.ceil(limits.burst * interval_s)}'}
    if remaining is not None:
        wait_s = (limits.burst - remaining) * interval_s if remaining else retry_after_s or interval_s
        fields["RateLimit"] = f'"jobs";r={remaining};t={max(1, math.ceil(wait_s))}'
    return fields
