"""A caller's webhooks: the secret that signs them, and the log of their deliveries."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request

from modelmill.errors import ErrorCode
from modelmill.store.webhooks import LoggedAttempt
from modelmill_api.callers import caller_of
from modelmill_api.lookup import is_uuid, no_such_job
from modelmill_api.problems import describe_problems
from modelmill_api.schemas import WebhookDelivery, WebhookSecret
from modelmill_api.state import State

router = APIRouter()


@router.get(
    "/api/webhooks/secret",
    tags=["webhooks"],
    summary="Read the secret that signs your webhooks",
    responses=describe_problems(ErrorCode.STORE_UNAVAILABLE),
)
async def read_secret(request: Request, state: State) -> WebhookSecret:
    return WebhookSecret(key=(await state.store.webhooks.secrets(caller_of(request).id))[0])


@router.post(
    "/api/webhooks/secret/rotate",
    tags=["webhooks"],
    summary="Make a new secret; webhooks are signed with both for 24 hours",
    responses=describe_problems(ErrorCode.STORE_UNAVAILABLE),
)
async def rotate_secret(request: Request, state: State) -> WebhookSecret:
    keys = await state.store.webhooks.secrets(caller_of(request).id, rotate=True)
    return WebhookSecret(key=keys[0])


@router.get(
    "/api/jobs/{id}/webhook-deliveries",
    tags=["jobs"],
    summary="List the attempts to send a job's webhooks",
    description="The last 50, oldest first. If one failed, you can read them for five days, even when the "
    "job is deleted.",
    responses=describe_problems(ErrorCode.JOB_NOT_FOUND, ErrorCode.STORE_UNAVAILABLE),
)
async def list_deliveries(id: str, request: Request, state: State) -> list[WebhookDelivery]:
    log = await state.store.webhooks.log(id, caller_of(request).id) if is_uuid(id) else None
    if log is None:
        raise no_such_job(state)
    return [_document(entry) for entry in log]


def _document(entry: LoggedAttempt) -> WebhookDelivery:
    return WebhookDelivery(
        id=entry.id,
        event=entry.event,
        attempt=entry.attempt,
        at=datetime.fromtimestamp(entry.at, UTC),
        outcome=entry.outcome,
        status=entry.status,
        error=entry.error,
        duration_s=entry.duration_s,
        next_attempt_at=None if entry.next_at is None else datetime.fromtimestamp(entry.next_at, UTC),
    )
