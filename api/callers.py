"""Who asks, and what they may."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request

from modelmill.states import Lane
from modelmill.store import Limits


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


def caller_of(request: Request) -> Caller:
    """Who sent ``request``."""
    caller: Caller = request.scope.get("modelmill.caller", ANONYMOUS)
    return caller
