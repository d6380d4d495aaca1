"""Submits a job: from the request's body to the answer.

``submit`` is the whole path of one job: ``prepare`` validates the body and finds its media, ``accept`` hands
the job to the store, and the caller gets a 202, or, if it waits, the job at its end. A bulk submit uses
``prepare`` and ``accept_many``.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from fastapi import Request, Response

from modelmill.errors import ErrorCode, ModelmillError, invalid_field
from modelmill.outbound import Guard
from modelmill.states import Status
from modelmill.store import JobRecord, Submission, SubmitReply, Verdict
from modelmill_api.body import parse_body
from modelmill_api.callers import Caller, rate_limit_fields
from modelmill_api.lookup import get_job
from modelmill_api.media import find_media
from modelmill_api.paths import task_path
from modelmill_api.refusals import refusal
from modelmill_api.responses import job_response
from modelmill_api.room import Place
from modelmill_api.state import ApiState
from modelmill_api.waiting import applied_wait, read_at_end, wait_for_end
from modelmill_tasks.contract import Task, TaskInput
from modelmill_tasks.shared.sources import WantedSources

_TAKEN = frozenset({Verdict.ACCEPTED, Verdict.REPLAYED})


@dataclass(frozen=True, slots=True)
class SubmitRequest:
    """A request to submit a job."""

    caller: Caller
    task: Task
    model: str
    body: bytes
    """As it came."""
    batched: bool = False
    idempotency_key: str = ""
    """From the header; empty if there is none."""
    rerun_of: JobRecord | None = None
    """The job whose body this is, if it runs again. The key in the body was for that job and does not count.
    The media that were found for that job are used again."""


async def submit(
    request: Request,
    state: ApiState,
    submitted: SubmitRequest,
    wait_s: int | None,
    place: Place | None = None,
) -> Response:
    """Submits a job and answers: with the job at its end, if the caller waits for that, else with a 202.

    Args:
        request: The HTTP request.
        state: The API's.
        submitted: The job to submit.
        wait_s: How long the caller waits for the end; None if it does not.
        place: The room of the body, which is left when the job is accepted.

    Raises:
        ModelmillError: says what is wrong, or why the job is refused.
    """
    submission = await prepare(state, submitted)
    caller, job_id, path = submitted.caller, submission.id, task_path(submission.task, submission.batched)
    del submitted
    if wait_s is None:
        reply = await accept(state, submission)
        return _accepted(path, reply.id, rate_limit_fields(caller.limits, reply.remaining))
    # Subscribe before submitting, so that the end cannot be missed.
    with state.news.until_end(job_id) as ended:
        reply = await accept(state, submission)
        # The caller may wait for a minute. Its body does not.
        del submission
        if place is not None:
            place.leave()
        headers = applied_wait(wait_s) | rate_limit_fields(caller.limits, reply.remaining)
        # The job is accepted: errors from here on must not change the 202.
        with suppress(ModelmillError):
            if reply.id != job_id:
                record = await read_at_end(
                    request, state, reply.id, wait_s, lambda: get_job(state, caller, reply.id)
                )
            elif await wait_for_end(request, ended, wait_s):
                record = await get_job(state, caller, reply.id)
            else:
                return _accepted(path, reply.id, headers)  # the client has hung up and reads no answer
            if record.status.is_terminal:
                return job_response(record, {}, {"Location": f"{path}/jobs/{reply.id}", **headers})
    return _accepted(path, reply.id, headers)


def _accepted(path: str, job_id: str, headers: Mapping[str, str]) -> Response:
    """The 202 of a job."""
    body = f'{{"id":"{job_id}","status":"{Status.STARTING.value}"}}'
    return Response(body, 202, {"Location": f"{path}/jobs/{job_id}", **headers}, "application/json")


async def prepare(state: ApiState, submitted: SubmitRequest) -> Submission:
    """Validates the body, and finds the media that it names.

    Returns:
        The job, with everything that the store needs.

    Raises:
        ModelmillError: says what is wrong, or what this caller may not do.
    """
    caller, task, model = submitted.caller, submitted.task, submitted.model
    contract, sources = state.directory.contract(task, model), WantedSources()
    parsed = await parse_body(contract, submitted.body, submitted.batched, sources, state.media_limits)
    if parsed.lane not in caller.lanes:
        allowed = ", ".join(sorted(caller.lanes))
        raise ModelmillError(
            ErrorCode.LANE_NOT_ALLOWED, f"lane: this API key may use {allowed}, and not {parsed.lane}."
        )
    if parsed.webhook is not None:
        check_webhook(state.webhook_guard, parsed.webhook)
    key = _one_key(submitted, parsed)
    files: Mapping[str, str] = {}
    if sources.answers:
        known = await _known_media(state, submitted, sources, key)
        files = await find_media(state, caller, sources) if known is None else known
        if known is None:
            # Parse again: now a bad file is reported under its field.
            await parse_body(contract, submitted.body, submitted.batched, sources, state.media_limits)
    return Submission(
        id=str(uuid.uuid4()),
        task=task.name,
        model=model,
        body=submitted.body,
        batched=submitted.batched,
        items=len(getattr(parsed, task.batched_fields[0])) if submitted.batched else 1,
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


async def accept(state: ApiState, submission: Submission) -> SubmitReply:
    """Hands the job to the store, and rings if the store asks for it.

    Returns:
        The store's reply. If the idempotency key was seen before, its id is that of the first job.

    Raises:
        ModelmillError: the job is refused.
    """
    reply = await state.store.submit(submission)
    if reply.verdict not in _TAKEN:
        raise _refused(reply, submission, state)
    if reply.bell:
        state.bells.ring(submission.model)
    return reply


async def accept_many(
    state: ApiState, model: str, submissions: Sequence[Submission]
) -> list[SubmitReply | ModelmillError]:
    """Hands jobs for one model to the store together. Returns a reply or an error for each, in order."""
    replies = await state.store.submit_many(submissions)
    if any(isinstance(reply, SubmitReply) and reply.bell for reply in replies):
        # One bell is enough: the queue rings again by itself as long as jobs wait.
        state.bells.ring(model)
    return [
        _refused(reply, submission, state)
        if isinstance(reply, SubmitReply) and reply.verdict not in _TAKEN
        else reply
        for submission, reply in zip(submissions, replies, strict=True)
    ]


def _refused(reply: SubmitReply, submission: Submission, state: ApiState) -> ModelmillError:
    return refusal(reply, state.settings, submission.limits, model=submission.model, files=submission.files)


def check_webhook(guard: Guard, url: str) -> None:
    """Refuses a URL that can be refused without resolving its host.

    Raises:
        ModelmillError: ``invalid_input``, naming the field.
    """
    try:
        guard.check_url(url)
    except ModelmillError as error:
        raise invalid_field("webhook", error.message) from None


def _one_key(submitted: SubmitRequest, parsed: TaskInput) -> str:
    """The idempotency key of the header or of the body."""
    header = submitted.idempotency_key
    given = (parsed.idempotency_key or "") if submitted.rerun_of is None else ""
    if header and given and header != given:
        raise invalid_field("idempotency_key", "is another one than the header Idempotency-Key")
    return header or given


async def _known_media(
    state: ApiState, submitted: SubmitRequest, sources: WantedSources, key: str
) -> Mapping[str, str] | None:
    """The files of an earlier job for the media that the request names; None if they must be looked for.

    Raises:
        ModelmillError: the caller is over a limit. Then nothing is fetched for it.
    """
    caller = submitted.caller
    if key and await state.store.is_known(caller.id, key):
        # The job of that key is the answer, so nothing is looked up again. If that job is deleted at this
        # moment, this one is refused, for there is no such file.
        return {value: "" for value, _ in sources.answers}
    if submitted.rerun_of is not None and submitted.rerun_of.files:
        return submitted.rerun_of.files
    # Only an early check; the script `submit.lua` decides.
    if early := await state.store.keys.over_limit(caller.id, caller.limits):
        raise refusal(early, state.settings, caller.limits, files={})
    return None
