"""The job routes as the documentation shows them: task by task, with each task's schemas.

Requests never come here. ``jobs.py`` answers them, for all tasks alike; these signatures exist for what
FastAPI makes of them in the OpenAPI document.
"""

from __future__ import annotations

from functools import cache
from typing import Annotated

from fastapi import APIRouter, Header, Response

from modelmill.errors import ErrorCode
from modelmill_api.openapi import schemas
from modelmill_api.problems import responses
from modelmill_api.responses import JobAccepted, JobDocument
from modelmill_api.waiting import Prefer
from modelmill_tasks.contract import Task
from modelmill_tasks.registry import all_tasks

IdempotencyKey = Annotated[
    str | None,
    Header(
        max_length=255,
        pattern=r"^[\x21-\x7e]+$",
        description="Any text of yours. The same key with the same body gives the same job, "
        "however often it is sent.",
    ),
]

_REFUSALS = (
    ErrorCode.MODEL_NOT_FOUND,
    ErrorCode.TASK_NOT_SUPPORTED,
    ErrorCode.INVALID_INPUT,
    ErrorCode.INVALID_MEDIA,
    ErrorCode.MEDIA_TOO_LARGE,
    ErrorCode.MEDIA_SOURCE_REFUSED,
    ErrorCode.MEDIA_NOT_FOUND,
    ErrorCode.MEDIA_FETCH_FAILED,
    ErrorCode.IDEMPOTENCY_CONFLICT,
    ErrorCode.QUEUE_FULL,
    ErrorCode.STORE_FULL,
    ErrorCode.STORE_UNAVAILABLE,
)
"""Of whatever is to become a job."""

SUBMIT_PROBLEMS = responses(ErrorCode.BODY_TOO_LARGE, *_REFUSALS)
RERUN_PROBLEMS = responses(
    ErrorCode.JOB_NOT_FOUND, ErrorCode.TASK_NOT_FOUND, ErrorCode.REQUEST_NOT_KEPT, *_REFUSALS
)
BULK_PROBLEMS = responses(ErrorCode.MODEL_NOT_FOUND, ErrorCode.TASK_NOT_SUPPORTED)
READ_PROBLEMS = responses(ErrorCode.JOB_NOT_FOUND, ErrorCode.STORE_UNAVAILABLE)


def task_path(task: str, batched: bool) -> str:
    """Where the jobs of a task are submitted and read: ``{this}/{model}/jobs`` and ``{this}/jobs/{id}``."""
    return f"/api/tasks/{task}{'/batched' if batched else ''}"


def bulk_path(task: str) -> str:
    """Where many plain jobs of a task are submitted in one request."""
    return f"{task_path(task, False)}/{{model}}/jobs:bulk"


@cache
def job_routes() -> APIRouter:
    """The routes of each task: submit and read, plain and batched; and submit in bulk."""
    router = APIRouter()
    for task in all_tasks().values():
        for batched in (False, True):
            _add_submit(router, task, batched)
            _add_read(router, task, batched)
        _add_bulk(router, task)
    return router


def _add_submit(router: APIRouter, task: Task, batched: bool) -> None:
    router.add_api_route(
        task_path(task.name, batched) + "/{model}/jobs",
        _submit,
        methods=["POST"],
        tags=[task.name],
        status_code=202,
        response_model=JobAccepted,
        responses=SUBMIT_PROBLEMS,
        summary=f"Submit a {'batched ' if batched else ''}job",
        description=task.summary + (" Batched fields are lists, one value an item." if batched else ""),
        openapi_extra=schemas.request_body(task, batched) | schemas.submit_responses(task, batched),
        operation_id=f"submit_{'batched_' if batched else ''}{task.name}".replace("-", "_"),
    )


def _add_read(router: APIRouter, task: Task, batched: bool) -> None:
    router.add_api_route(
        task_path(task.name, batched) + "/jobs/{id}",
        _read,
        methods=["GET"],
        tags=[task.name],
        response_model=JobDocument,
        responses=READ_PROBLEMS,
        summary=f"Read a {'batched ' if batched else ''}job",
        openapi_extra=schemas.job_response(task, batched),
        operation_id=f"read_{'batched_' if batched else ''}{task.name}".replace("-", "_"),
    )


def _add_bulk(router: APIRouter, task: Task) -> None:
    router.add_api_route(
        bulk_path(task.name),
        _submit_many,
        methods=["POST"],
        tags=[task.name],
        response_class=Response,
        responses=BULK_PROBLEMS,
        summary="Submit many jobs",
        description="One job a line, each with the body of a plain job. A line is answered by a line, in the "
        "same order and while the request is still being read: by the job's `id` and `status`, or by an "
        "`error` with `code`, `message`, `retryable` and maybe `retry_after_s` and `errors`. "
        "Empty lines are left out.",
        openapi_extra=schemas.bulk(task),
        operation_id=f"submit_many_{task.name}".replace("-", "_"),
    )


def _submit_many(model: str) -> None: ...


def _submit(model: str, idempotency_key: IdempotencyKey = None, prefer: Prefer = None) -> None: ...


def _read(id: str, prefer: Prefer = None) -> None: ...
