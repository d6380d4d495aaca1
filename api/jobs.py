"""Jobs: submit, read and cancel. The routes of each task are made from its contract."""

from __future__ import annotations

import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from fastapi.responses import JSONResponse

from api import schemas
from api.body import parse_body, read_body
from api.documents import JobAccepted, JobDocument, job_response
from api.outlook import outlook
from api.problems import responses
from api.state import ApiState, state_of
from api.waiting import Prefer, preferred_wait, read_at_end
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import Status
from modelmill.store import JobRecord, Submission, Verdict
from tasks.contract import Task
from tasks.registry import all_tasks, find_task

State = Annotated[ApiState, Depends(state_of)]
IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of yours. The same key with the same body gives the same job, "
        "however often it is sent.",
    ),
]

SUBMIT_PROBLEMS = responses(
    ErrorCode.MODEL_NOT_FOUND,
    ErrorCode.TASK_NOT_SUPPORTED,
    ErrorCode.BODY_TOO_LARGE,
    ErrorCode.INVALID_INPUT,
    ErrorCode.INVALID_MEDIA,
    ErrorCode.MEDIA_TOO_LARGE,
    ErrorCode.MEDIA_SOURCE_REFUSED,
    ErrorCode.IDEMPOTENCY_CONFLICT,
    ErrorCode.QUEUE_FULL,
    ErrorCode.STORE_FULL,
    ErrorCode.STORE_UNAVAILABLE,
)
READ_PROBLEMS = responses(ErrorCode.JOB_NOT_FOUND, ErrorCode.STORE_UNAVAILABLE)


def task_routes(task: Task) -> APIRouter:
    """The four routes of one task: submit and read, plain and batched."""
    router = APIRouter(prefix=f"/api/tasks/{task.name}", tags=[task.name])
    for batched, part in ((False, ""), (True, "/batched")):
        _add_submit(router, task, batched, f"{part}/{{model}}/jobs")
        _add_read(router, task, batched, f"{part}/jobs/{{id}}")
    return router


def _add_submit(router: APIRouter, task: Task, batched: bool, path: str) -> None:
    @router.post(
        path,
        status_code=202,
        response_model=JobAccepted,
        responses=SUBMIT_PROBLEMS,
        summary=f"Submit a {'batched ' if batched else ''}job",
        description=task.summary + (" Batched fields are lists, one value an item." if batched else ""),
        openapi_extra=schemas.request_body(task, batched) | schemas.submit_responses(task, batched),
        operation_id=f"submit_{'batched_' if batched else ''}{task.name}".replace("-", "_"),
    )
    async def submit(
        model: str,
        request: Request,
        state: State,
        idempotency_key: IdempotencyKey = None,
        prefer: Prefer = None,
    ) -> Response:
        accepted = await _submit(task, model, batched, request, state, idempotency_key or "")
        return await _accepted(task, batched, accepted, request, state, preferred_wait(prefer))


def _add_read(router: APIRouter, task: Task, batched: bool, path: str) -> None:
    @router.get(
        path,
        response_model=JobDocument,
        responses=READ_PROBLEMS,
        summary=f"Read a {'batched ' if batched else ''}job",
        openapi_extra=schemas.job_response(task, batched),
        operation_id=f"read_{'batched_' if batched else ''}{task.name}".replace("-", "_"),
    )
    async def read(id: str, request: Request, state: State, prefer: Prefer = None) -> Response:
        return await _read(request, state, id, prefer, lambda: _find(state, task, id, batched))


async def _submit(
    task: Task, model: str, batched: bool, request: Request, state: ApiState, idempotency_key: str
) -> str:
    """Accepts a job, and returns its id."""
    await state.directory.check(task, model)
    body = await read_body(request, state.settings.max_body_bytes)
    parsed = await parse_body(task, body, batched)
    submission = Submission(
        id=str(uuid.uuid4()),
        task=task.name,
        model=model,
        body=body,
        batched=batched,
        items=len(getattr(parsed, task.batched_fields[0])) if batched else 1,
        lane=parsed.lane,
        idempotency_key=idempotency_key,
        expires_in_s=parsed.expires_in,
        bell_every=state.directory.max_batch(model) or state.settings.max_batch,
    )
    accepted = await state.store.submit(submission)
    _raise_refusal(accepted.verdict, model, state)
    if accepted.bell:
        state.bells.ring(model)
    return accepted.id


async def _accepted(
    task: Task, batched: bool, job_id: str, request: Request, state: ApiState, wait_s: int | None
) -> Response:
    """The answer to a submit: the job's document if it ends within the wait, else that it was accepted."""
    part = "/batched" if batched else ""
    headers = {"Location": f"/api/tasks/{task.name}{part}/jobs/{job_id}"}
    if wait_s is not None:
        # Accepted it is, whatever happens to the store from now on.
        with suppress(ModelmillError):
            record = await read_at_end(request, state, job_id, wait_s, lambda: _get(state, job_id))
            headers |= _applied(wait_s)
            if record.status.is_terminal:
                return job_response(record, {}, headers)
    return JSONResponse({"id": job_id, "status": Status.STARTING.value}, 202, headers)


def _raise_refusal(verdict: Verdict, model: str, state: ApiState) -> None:
    if verdict in (Verdict.ACCEPTED, Verdict.REPLAYED):
        return
    if verdict is Verdict.CONFLICT:
        raise ModelmillError(
            ErrorCode.IDEMPOTENCY_CONFLICT,
            "This Idempotency-Key was used for another request. "
            "Use a new key, or send the very same request.",
        )
    code, reason, retry_after_s = {
        Verdict.QUEUE_FULL: (
            ErrorCode.QUEUE_FULL,
            f"{state.settings.max_queue_depth} jobs wait for {model!r} already.",
            5,
        ),
        Verdict.BYTES_FULL: (
            ErrorCode.QUEUE_FULL,
            f"The waiting jobs hold {state.settings.max_queued_bytes} bytes already.",
            5,
        ),
        Verdict.STORE_FULL: (ErrorCode.STORE_FULL, "The job store is nearly out of memory.", 10),
        Verdict.PAYLOAD_MISSING: (ErrorCode.STORE_UNAVAILABLE, "The job store lost the request.", 1),
    }[verdict]
    raise ModelmillError(
        code, f"{reason} Nothing was accepted; try again later.", retry_after_s=retry_after_s
    )


async def _read(
    request: Request,
    state: ApiState,
    job_id: str,
    prefer: list[str] | None,
    find: Callable[[], Awaitable[JobRecord]],
) -> Response:
    headers = {"Vary": "Prefer"}
    wait_s = preferred_wait(prefer)
    if wait_s is None or not _is_uuid(job_id):
        record = await find()
    else:
        record = await read_at_end(request, state, job_id, wait_s, find)
        headers |= _applied(wait_s)
    return job_response(record, {} if record.status.is_terminal else await outlook(record, state), headers)


def _applied(wait_s: int) -> dict[str, str]:
    return {"Preference-Applied": f"wait={wait_s}"}


async def _get(state: ApiState, job_id: str) -> JobRecord:
    record = await state.store.get(job_id) if _is_uuid(job_id) else None
    if record is None:
        hours = state.settings.result_ttl_s / 3600
        raise ModelmillError(
            ErrorCode.JOB_NOT_FOUND,
            "There is no such job, or its result has expired: "
            f"results live {hours:g} hours after the job's end.",
        )
    return record


async def _find(state: ApiState, task: Task, job_id: str, batched: bool | None) -> JobRecord:
    record = await _get(state, job_id)
    if record.task != task.name or (batched is not None and record.batched != batched):
        part = "/batched" if record.batched else ""
        raise ModelmillError(
            ErrorCode.JOB_NOT_FOUND,
            f"This job is to be read at /api/tasks/{record.task}{part}/jobs/{record.id}.",
        )
    return record


def _is_uuid(text: str) -> bool:
    try:
        uuid.UUID(text)
    except ValueError:
        return False
    return True


generic = APIRouter(tags=["tasks"])
"""Routes that are the same for all tasks; to be included after the tasks' own."""


@generic.post(
    "/api/tasks/{task}/jobs/{id}/cancel",
    response_model=JobAccepted,
    status_code=202,
    responses=responses(
        ErrorCode.TASK_NOT_FOUND,
        ErrorCode.JOB_NOT_FOUND,
        ErrorCode.JOB_NOT_CANCELABLE,
        ErrorCode.STORE_UNAVAILABLE,
    ),
    summary="Cancel a job",
    description="A queued job is canceled at once; a running one between batches, its status then follows.",
)
async def cancel(task: str, id: str, state: State) -> JobAccepted:
    record = await _find(state, find_task(task), id, None)
    outcome = await state.store.cancel(record.id)
    if outcome == "requested":
        return JobAccepted(id=record.id, status=Status.RUNNING)
    if outcome != Status.CANCELED:
        raise ModelmillError(ErrorCode.JOB_NOT_CANCELABLE, f"The job has already ended: it is {outcome}.")
    return JobAccepted(id=record.id, status=Status.CANCELED)


@generic.get(
    "/api/jobs/{id}",
    response_model=JobDocument,
    responses=READ_PROBLEMS,
    summary="Read a job of any task",
    tags=["jobs"],
)
async def read_job(id: str, request: Request, state: State, prefer: Prefer = None) -> Response:
    return await _read(request, state, id, prefer, lambda: _get(state, id))


@generic.post("/api/tasks/{task}/{model}/jobs", include_in_schema=False)
@generic.post("/api/tasks/{task}/batched/{model}/jobs", include_in_schema=False)
@generic.get("/api/tasks/{task}/jobs/{id}", include_in_schema=False)
@generic.get("/api/tasks/{task}/batched/jobs/{id}", include_in_schema=False)
async def unknown_task(task: str) -> None:
    # A known task has routes of its own: this always raises, naming the nearest.
    find_task(task)


def job_routers() -> list[APIRouter]:
    """All routes on jobs, in the order they are to be matched."""
    return [*map(task_routes, all_tasks().values()), generic]
