"""Lists, cancels, deletes and reruns jobs."""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import replace
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import JSONResponse

from modelmill.errors import ErrorCode, ModelmillError, invalid_field
from modelmill.states import Status
from modelmill.store import Cancellation, Deletion, JobRecord
from modelmill.store.listing import JobFilter
from modelmill_api.callers import caller_of
from modelmill_api.lookup import get_job, get_task_job, no_such_job
from modelmill_api.openapi.document import ACCEPTED_OR_ENDED
from modelmill_api.parameters import IdempotencyKey, Prefer
from modelmill_api.problems import SUBMIT_REFUSALS, describe_problems
from modelmill_api.responses import job_document
from modelmill_api.schemas import JobAccepted, JobPage
from modelmill_api.state import ApiState, State
from modelmill_api.submitting import SubmitRequest, submit
from modelmill_api.waiting import preferred_wait
from modelmill_tasks.registry import find_task

router = APIRouter(tags=["jobs"])

MAX_PAGE = 100


@router.get(
    "/api/jobs",
    summary="List your jobs, newest first",
    description="Without results, positions in the queue and estimates; read a job by itself for those.",
    response_model=JobPage,
    responses=describe_problems(
        ErrorCode.TASK_NOT_FOUND,
        ErrorCode.MODEL_NOT_FOUND,
        ErrorCode.INVALID_INPUT,
        ErrorCode.STORE_UNAVAILABLE,
    ),
)
async def list_mine(
    request: Request,
    state: State,
    task: Annotated[str | None, Query(description="Only jobs of this task.")] = None,
    model: Annotated[str | None, Query(description="Only jobs for this model.")] = None,
    status: Annotated[
        list[Status] | None,
        Query(max_length=len(Status), description="Only jobs with this status; may repeat."),
    ] = None,
    tag: Annotated[str | None, Query(max_length=64, description="Only jobs with this tag.")] = None,
    cursor: Annotated[str | None, Query(description="`next` of the previous page.")] = None,
    limit: Annotated[int, Query(ge=1, le=MAX_PAGE, description="Jobs on a page.")] = 20,
) -> Response:
    name = None if task is None else find_task(task).name
    before = None if cursor is None else _sequence(cursor)
    wanted = JobFilter(name, model, frozenset(status or ()), tag)
    page = await state.store.listing.page(caller_of(request).id, wanted, before, limit)
    if model is not None and not page.jobs and page.before is None:
        # Jobs outlive the workers that knew their model, so only a name without jobs is checked.
        await state.directory.tasks_of(model)
    return JSONResponse(
        {
            "jobs": [job_document(record, {}) for record in page.jobs],
            "next": None if page.before is None else _cursor(page.before),
        }
    )


def _cursor(sequence: int) -> str:
    return base64.urlsafe_b64encode(b"j%d" % sequence).rstrip(b"=").decode()


def _sequence(cursor: str) -> int:
    """The sequence number from which ``_cursor`` made this cursor.

    Raises:
        ModelmillError: ``invalid_input``: ``_cursor`` did not make it.
    """
    try:
        text = base64.urlsafe_b64decode(cursor[:64] + "=" * (-len(cursor) % 4))
    except (binascii.Error, ValueError):
        text = b""
    if re.fullmatch(rb"j[0-9]{1,15}", text) and _cursor(int(text[1:])) == cursor:
        return int(text[1:])
    raise invalid_field("cursor", "is not the `next` of a page")


CANCEL_PROBLEMS = describe_problems(
    ErrorCode.JOB_NOT_FOUND, ErrorCode.JOB_NOT_CANCELABLE, ErrorCode.STORE_UNAVAILABLE
)
TASK_CANCEL_PROBLEMS = describe_problems(
    ErrorCode.TASK_NOT_FOUND,
    ErrorCode.JOB_NOT_FOUND,
    ErrorCode.JOB_NOT_CANCELABLE,
    ErrorCode.STORE_UNAVAILABLE,
)
CANCELING = "A queued job is canceled at once. A running one is canceled between batches; its status follows."


@router.post(
    "/api/jobs/{id}/cancel",
    status_code=202,
    responses=CANCEL_PROBLEMS,
    summary="Cancel a job of any task",
    description=CANCELING,
)
async def cancel(id: str, request: Request, state: State) -> JobAccepted:
    return await _cancel(state, await get_job(state, caller_of(request), id))


@router.post(
    "/api/tasks/{task}/jobs/{id}/cancel",
    status_code=202,
    responses=TASK_CANCEL_PROBLEMS,
    tags=["tasks"],
    summary="Cancel a job",
    description=CANCELING,
)
async def cancel_of_task(task: str, id: str, request: Request, state: State) -> JobAccepted:
    return await _cancel(state, await get_task_job(state, caller_of(request), find_task(task), id, None))


@router.post(
    "/api/tasks/{task}/batched/jobs/{id}/cancel",
    status_code=202,
    responses=TASK_CANCEL_PROBLEMS,
    tags=["tasks"],
    summary="Cancel a batched job",
    description=CANCELING,
)
async def cancel_batched(task: str, id: str, request: Request, state: State) -> JobAccepted:
    return await _cancel(state, await get_task_job(state, caller_of(request), find_task(task), id, True))


async def _cancel(state: ApiState, record: JobRecord) -> JobAccepted:
    outcome = await state.store.cancel(record.id)
    if outcome is Cancellation.MISSING:
        raise no_such_job(state)
    if outcome is Cancellation.REQUESTED:
        return JobAccepted(id=record.id, status=Status.RUNNING)
    if outcome is not Cancellation.CANCELED:
        raise ModelmillError(ErrorCode.JOB_NOT_CANCELABLE, f"The job has already ended: it is {outcome}.")
    return JobAccepted(id=record.id, status=Status.CANCELED)


DELETE_PROBLEMS = describe_problems(ErrorCode.JOB_NOT_FOUND, ErrorCode.STORE_UNAVAILABLE)
TASK_DELETE_PROBLEMS = describe_problems(
    ErrorCode.TASK_NOT_FOUND, ErrorCode.JOB_NOT_FOUND, ErrorCode.STORE_UNAVAILABLE
)
DELETING = "Deletes the job and all its data. A job that has not ended is canceled first."


@router.delete(
    "/api/jobs/{id}",
    status_code=204,
    response_class=Response,
    responses=DELETE_PROBLEMS,
    summary="Delete a job of any task",
    description=DELETING,
)
async def delete(id: str, request: Request, state: State) -> None:
    await _delete(state, await get_job(state, caller_of(request), id))


@router.delete(
    "/api/tasks/{task}/jobs/{id}",
    status_code=204,
    response_class=Response,
    responses=TASK_DELETE_PROBLEMS,
    tags=["tasks"],
    summary="Delete a job",
    description=DELETING,
)
async def delete_of_task(task: str, id: str, request: Request, state: State) -> None:
    await _delete(state, await get_task_job(state, caller_of(request), find_task(task), id, False))


@router.delete(
    "/api/tasks/{task}/batched/jobs/{id}",
    status_code=204,
    response_class=Response,
    responses=TASK_DELETE_PROBLEMS,
    tags=["tasks"],
    summary="Delete a batched job",
    description=DELETING,
)
async def delete_batched(task: str, id: str, request: Request, state: State) -> None:
    await _delete(state, await get_task_job(state, caller_of(request), find_task(task), id, True))


async def _delete(state: ApiState, record: JobRecord) -> None:
    (verdict,) = await state.store.delete([record.id])
    if verdict is Deletion.MISSING:
        # Another request was faster.
        raise no_such_job(state)


@router.post(
    "/api/jobs/{id}/rerun",
    status_code=202,
    response_model=JobAccepted,
    responses=describe_problems(
        ErrorCode.JOB_NOT_FOUND, ErrorCode.TASK_NOT_FOUND, ErrorCode.REQUEST_NOT_KEPT, *SUBMIT_REFUSALS
    ),
    openapi_extra=ACCEPTED_OR_ENDED,
    summary="Run a job again",
    description="Submits a new job with the same request. An `idempotency_key` in that request does not "
    "count; this call takes one of its own.",
)
async def rerun(
    id: str,
    request: Request,
    state: State,
    idempotency_key: IdempotencyKey = None,
    prefer: Prefer = None,
) -> Response:
    caller = caller_of(request)
    record = await get_job(state, caller, id)
    task = find_task(record.task)
    await state.directory.check(task, record.model)
    body = await state.store.request(record)
    if body is None:
        raise ModelmillError(
            ErrorCode.REQUEST_NOT_KEPT,
            "The request of this job is no longer there: requests of complete jobs are kept only up to "
            f"{state.settings.keep_request_bytes} bytes (MODELMILL_KEEP_REQUEST_BYTES). "
            "Submit it again.",
        )
    # The job is validated anew: the contract and what the caller may do can have changed since.
    wait_s = preferred_wait(prefer)
    submitted = SubmitRequest(
        caller=caller,
        task=task,
        model=record.model,
        body=body,
        batched=record.batched,
        idempotency_key=idempotency_key or "",
        rerun_of=record,
    )
    try:
        return await submit(request, state, submitted, wait_s)
    except ModelmillError as error:
        if error.code is not ErrorCode.MEDIA_NOT_FOUND or not record.files:
            raise
    # The media that were found for the first job are gone. Look for them once more.
    return await submit(request, state, replace(submitted, rerun_of=replace(record, files={})), wait_s)
