"""From a request's body to an accepted job."""

from __future__ import annotations

import uuid

from api.body import parse_body
from api.callers import Caller
from api.state import ApiState
from modelmill.errors import ErrorCode, FieldError, ModelmillError
from modelmill.store import Accepted, Submission, Verdict
from tasks.contract import Task, TaskInput


async def prepare(
    state: ApiState,
    caller: Caller,
    task: Task,
    model: str,
    body: bytes,
    *,
    batched: bool = False,
    idempotency_key: str = "",
) -> Submission:
    """The job that ``body`` asks for, validated, with everything that belongs to it.

    Raises:
        ModelmillError: says what is wrong, or that the caller may not.
    """
    parsed = await parse_body(state.directory.contract(task, model), body, batched)
    if parsed.lane not in caller.lanes:
        allowed = ", ".join(sorted(caller.lanes))
        raise ModelmillError(
            ErrorCode.LANE_NOT_ALLOWED, f"lane: this API key may use {allowed}, and not {parsed.lane}."
        )
    return Submission(
        id=str(uuid.uuid4()),
        task=task.name,
        model=model,
        body=body,
        batched=batched,
        items=len(getattr(parsed, task.batched_fields[0])) if batched else 1,
        lane=parsed.lane,
        caller=caller.id,
        idempotency_key=_one_key(idempotency_key, parsed),
        expires_in_s=parsed.expires_in,
        bell_every=state.directory.max_batch(model) or state.settings.max_batch,
        result_ttl_s=parsed.result_ttl,
        metadata=parsed.metadata,
        tags=parsed.tags,
        webhook=parsed.webhook,
        webhook_events=parsed.webhook_events,
        limits=caller.limits,
    )


async def accept(state: ApiState, submission: Submission) -> Accepted:
    """Hands the job to the store. The id is the first job's, for an idempotency key seen before.

    Raises:
        ModelmillError: it was refused.
    """
    accepted = await state.store.submit(submission)
    if accepted.verdict not in (Verdict.ACCEPTED, Verdict.REPLAYED):
        raise _refusal(accepted, submission, state)
    if accepted.bell:
        state.bells.ring(submission.model)
    return accepted


def _one_key(header: str, parsed: TaskInput) -> str:
    given = parsed.idempotency_key or ""
    if header and given and header != given:
        message = "is another one than the header Idempotency-Key"
        raise ModelmillError(
            ErrorCode.INVALID_INPUT,
            f"idempotency_key: {message}",
            fields=[FieldError("idempotency_key", message)],
        )
    return header or given


def _refusal(accepted: Accepted, submission: Submission, state: ApiState) -> ModelmillError:
    limits, settings = submission.limits, state.settings
    if accepted.verdict is Verdict.CONFLICT:
        return ModelmillError(
            ErrorCode.IDEMPOTENCY_CONFLICT,
            "This Idempotency-Key was used for another request. "
            "Use a new key, or send the very same request.",
        )
    if accepted.verdict is Verdict.FILE_MISSING:
        named = next((name for name, file in submission.files.items() if file == accepted.id), accepted.id)
        return ModelmillError(
            ErrorCode.MEDIA_NOT_FOUND,
            f"There is no file {named[:100]!r}, or its time is over: upload it again.",
        )
    code, reason = {
        Verdict.QUEUE_FULL: (
            ErrorCode.QUEUE_FULL,
            f"{settings.max_queue_depth} jobs wait for {submission.model!r} already.",
        ),
        Verdict.BYTES_FULL: (
            ErrorCode.QUEUE_FULL,
            f"The waiting jobs hold {settings.max_queued_bytes} bytes already.",
        ),
        Verdict.STORE_FULL: (ErrorCode.STORE_FULL, "The job store is nearly out of memory."),
        Verdict.PAYLOAD_MISSING: (ErrorCode.STORE_UNAVAILABLE, "The job store lost the request."),
        Verdict.QUOTA_FULL: (
            ErrorCode.QUOTA_EXCEEDED,
            f"{limits.max_jobs} jobs of this API key have not ended, which is as many as it may have.",
        ),
        Verdict.RATE_LIMITED: (
            ErrorCode.RATE_LIMITED,
            f"This API key may submit {limits.jobs_per_minute:g} jobs a minute."
            if limits.jobs_per_minute
            else "",
        ),
    }[accepted.verdict]
    return ModelmillError(
        code, f"{reason} Nothing was accepted; try again later.", retry_after_s=accepted.retry_after_s
    )
