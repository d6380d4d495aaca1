"""What a caller can ask about its webhooks: the secret they are signed with, and what became of them."""

from __future__ import annotations

from datetime import UTC, datetime

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from modelmill.errors import ErrorCode, FieldError, ModelmillError
from modelmill.outbound import Guard
from modelmill.store.webhooks import DeliveryOutcome, LoggedAttempt
from modelmill_api.callers import caller_of
from modelmill_api.lookup import is_uuid, no_such_job
from modelmill_api.problems import responses
from modelmill_api.state import State

router = APIRouter()


def check_webhook(guard: Guard, url: str) -> None:
    """Refuses what can be refused without asking for the host's address.

    Raises:
        ModelmillError: ``invalid_input``, naming the field.
    """
    try:
        guard.check_url(url)
    except ModelmillError as error:
        raise ModelmillError(
            ErrorCode.INVALID_INPUT,
            f"webhook: {error.message}",
            fields=[FieldError("webhook", error.message)],
        ) from None


class WebhookSecret(BaseModel):
    """What webhooks are signed with."""

    key: str = Field(
        description="For the libraries of Standard Webhooks as it is: `whsec_` and base64.",
        examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"],
    )


class WebhookDelivery(BaseModel):
    """One attempt to send a webhook."""

    id: str = Field(description="The header `webhook-id`; the same for each attempt.")
    event: str = Field(description="started, progress or ended.")
    attempt: int = Field(description="1 is the first.")
    at: datetime
    outcome: DeliveryOutcome = Field(
        description="delivered; failed; refused, as a URL that may not be asked; or gone, after status 410."
    )
    status: int | None = Field(description="The receiver's; null when it gave no answer.")
    error: str | None
    duration_s: float
    next_attempt_at: datetime | None = Field(description="When it is sent again; null when it is not.")


@router.get(
    "/api/webhooks/secret",
    tags=["webhooks"],
    summary="Read the secret that your webhooks are signed with",
    responses=responses(ErrorCode.STORE_UNAVAILABLE),
)
async def read_secret(request: Request, response: Response, state: State) -> WebhookSecret:
    response.headers["Cache-Control"] = "no-store"
    return WebhookSecret(key=(await state.store.webhooks.secrets(caller_of(request).id))[0])


@router.post(
    "/api/webhooks/secret/rotate",
    tags=["webhooks"],
    summary="Make a new secret; webhooks are signed with both for 24 hours",
    responses=responses(ErrorCode.STORE_UNAVAILABLE),
)
async def rotate_secret(request: Request, response: Response, state: State) -> WebhookSecret:
    response.headers["Cache-Control"] = "no-store"
    keys = await state.store.webhooks.secrets(caller_of(request).id, rotate=True)
    return WebhookSecret(key=keys[0])


@router.get(
    "/api/jobs/{id}/webhook-deliveries",
    tags=["jobs"],
    summary="List the attempts to send a job's webhooks",
    description="Oldest first; the last 50. Where one failed they can be read for five days, also when the "
    "job is forgotten.",
    responses=responses(ErrorCode.JOB_NOT_FOUND, ErrorCode.STORE_UNAVAILABLE),
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
