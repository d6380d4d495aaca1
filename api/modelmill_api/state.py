"""The parts of one API process, which the routes share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request

from modelmill.outbound import Guard
from modelmill.settings import Settings
from modelmill.store import ApiStore, JobNews
from modelmill_api.bells import AsyncBells
from modelmill_api.directory import Directory
from modelmill_api.middleware.metrics import RequestMetrics
from modelmill_api.room import BodyRoom
from modelmill_tasks.limits import MediaLimits


@dataclass(frozen=True, slots=True)
class ApiState:
    """The parts of one API process."""

    settings: Settings
    media_limits: MediaLimits
    """Those of ``settings``."""
    store: ApiStore
    room: BodyRoom
    bells: AsyncBells
    directory: Directory
    news: JobNews
    metrics: RequestMetrics
    media_guard: Guard | None
    """Fetches media by URL; None if no host is allowed."""
    webhook_guard: Guard
    """Sends webhooks."""


def state_of(request: Request) -> ApiState:
    """The state of the application that serves ``request``."""
    state: ApiState = request.app.state.modelmill
    return state


async def _depend_on_state(request: Request) -> ApiState:
    # Asynchronous although it awaits nothing: FastAPI runs a plain function in a thread, for each request.
    return state_of(request)


State = Annotated[ApiState, Depends(_depend_on_state)]
"""The parameter through which a FastAPI route receives the state."""
