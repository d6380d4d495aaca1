"""From a request's body to an accepted job."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence

from modelmill.errors import ErrorCode, FieldError, ModelmillError
from modelmill.store import JobRecord, Limits, Submission, SubmitReply, Verdict
from modelmill_api.body import parse_body
from modelmill_api.callers import Caller, rate_limit_fields
from modelmill_api.media import find_media
from modelmill_api.routes.webhooks import check_webhook
from modelmill_api.state import ApiState
from modelmill_tasks.contract import Task, TaskInput
from modelmill_tasks.shared.sources import WantedSources

_TAKEN = frozenset({Verdict.ACCEPTED, Verdict.REPLAYED})


async def prepare(
    state: ApiState,
    caller: Caller,
    task: Task,
    model: str,
    body: bytes,
    *,
    batched: bool = False,
    idempotency_key: str = "",
    again: JobRecord | None = None,
) -> Submission:
    """The job that ``body`` asks for, validated, with everything that belongs to it.

    Args:
        state: The API's.
        caller: Whose job it is to be.
        task: The task.
        model: The model.
        body: The request as it came.
        batched: Whether it is a batched job's.
        idempotency_key: Of the header.
        again: The job whose request it is, if it runs again: the key in the body was that job's, and the
            media that were found for it are used again.

    Raises:
        ModelmillError: says what is wrong, or that the caller may not.
    """
    contract, sources = state.directory.contract(task, model), WantedSources()
    parsed = await parse_body(contract, body, batched, sources)
    if parsed.lane not in caller.lanes:
        allowed = ", ".join(sorted(caller.lanes))
        raise ModelmillError(
            ErrorCode.LANE_NOT_ALLOWED, f"lane: this API key may use {allowed}, and not {parsed.lane}."
        )
    if parsed.webhook is not None:
        check_webhook(state.webhook_guard, parsed.webhook)
    key = _one_key(idempotency_key, parsed) if again is None else idempotency_key
    files: Mapping[str, str] = {}
    if sources.answers:
        known = await _known_media(state, caller, sources, key, again)
        files = await find_media(state, caller, sources) if known is None else known
        if known is None:
            # Once more, so that what is wrong with one of them is said of its field.
            await parse_body(contract, body, batched, sources)
    return Submission(
        id=str(uuid.uuid4()),
        task=task.name,
        model=model,
        body=body,
        batched=batched,
        items=len(getattr(parsed, task.batched_fields[0])) if batched else 1,
        lane=parsed.lane,
        caller=caller.id,
        idempotency_key=key,
        expires_in_s=parsed.expires_in,
        bell_every=state.directory.max_batch(model) or state.settings.max_batch,
        result_ttl_s=parsed.result_ttl,
        metadata=parsed.metadata,
        tags=parsed.tags,
        webhook=parsed.webhook,
        webhook_events=parsed.webhook_events,
        files=files,
        limits=caller.limits,
    )


async def _known_media(
    state: ApiState, caller: Caller, sources: WantedSources, key: str, again: JobRecord | None
) -> Mapping[str, str] | None:
    """The files behind what a request only names, as an earlier job has them; None to look for them.

    Raises:
        ModelmillError: the caller is over a limit, and is not to have things fetched.
    """
    if key and await state.store.is_known(caller.id, key):
        # Answered by the job of that key: nothing is looked up again. Should that job go just now, this one
        # is refused, for there is no such file.
        return {value: "" for value, _ in sources.answers}
    if again is not None and again.files:
        return again.files
    # What counts is the look when it is submitted.
    if early := await state.store.keys.over_limit(caller.id, caller.limits):
        raise _refusal(early, "", caller.limits, {}, state)
    return None


async def accept(state: ApiState, submission: Submission) -> SubmitReply:
    """Hands the job to the store. The id is the first job's, for an idempotency key seen before.

    Raises:
        ModelmillError: it was refused.
    """
    accepted = await state.store.submit(submission)
    if accepted.verdict not in _TAKEN:
        raise _refusal(accepted, submission.model, submission.limits, submission.files, state)
    if accepted.bell:
        state.bells.ring(submission.model)
    return accepted


async def accept_many(
    state: ApiState, model: str, submissions: Sequence[Submission]
) -> list[SubmitReply | ModelmillError]:
    """Hands jobs for one model to the store together; says of each how it went."""
    answers = await state.store.submit_many(submissions)
    if any(isinstance(answer, SubmitReply) and answer.bell for answer in answers):
        # Of several bells, one a call will do: a waiting queue rings again by itself.
        state.bells.ring(model)
    return [
        _refusal(answer, submission.model, submission.limits, submission.files, state)
        if isinstance(answer, SubmitReply) and answer.verdict not in _TAKEN
        else answer
        for submission, answer in zip(submissions, answers, strict=True)
    ]


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


def _refusal(
    accepted: SubmitReply, model: str, limits: Limits, files: Mapping[str, str], state: ApiState
) -> ModelmillError:
    settings = state.settings
    if accepted.verdict is Verdict.CONFLICT:
        return ModelmillError(
            ErrorCode.IDEMPOTENCY_CONFLICT,
            "This Idempotency-Key was used for another request. "
            "Use a new key, or send the very same request.",
        )
    if accepted.verdict is Verdict.FILE_MISSING:
        named = next((name for name, file in files.items() if file == accepted.id), accepted.id)
        return ModelmillError(
            ErrorCode.MEDIA_NOT_FOUND,
            f"There is no file {named[:100]!r}, or its time is over: upload it again.",
        )
    code, reason = {
        Verdict.QUEUE_FULL: (
            ErrorCode.QUEUE_FULL,
            f"{settings.max_queue_depth} jobs wait for {model!r} already.",
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
    # Of what was refused for another reason, the store counted itself in.
    left = accepted.remaining if accepted.verdict is Verdict.RATE_LIMITED else None
    return ModelmillError(
        code,
        f"{reason} Nothing was accepted; try again later.",
        retry_after_s=accepted.retry_after_s,
        headers=rate_limit_fields(limits, left, accepted.retry_after_s),
    )
