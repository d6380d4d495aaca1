"""The job routes as the OpenAPI document shows them: task by task, with each task's schemas.

Nothing here answers a request. ``modelmill_api.routes.jobs`` and ``bulk`` do, for all tasks alike. FastAPI
reads the signatures of this module for the document.
"""

from __future__ import annotations

from functools import cache

from fastapi import APIRouter, Response

from modelmill.errors import ErrorCode
from modelmill_api.openapi import document
from modelmill_api.parameters import IdempotencyKey, Prefer
from modelmill_api.paths import bulk_path, task_path
from modelmill_api.problems import BODY_PROBLEMS, READ_PROBLEMS, SUBMIT_REFUSALS, describe_problems
from modelmill_api.schemas import JobAccepted, JobDocument
from modelmill_tasks.contract import Task
from modelmill_tasks.registry import all_tasks

SUBMIT_PROBLEMS = describe_problems(*BODY_PROBLEMS, *SUBMIT_REFUSALS)
BULK_PROBLEMS = describe_problems(
    ErrorCode.MODEL_NOT_FOUND, ErrorCode.TASK_NOT_SUPPORTED, ErrorCode.UNSUPPORTED_ENCODING
)


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
        openapi_extra=document.request_body(task, batched) | document.submit_responses(task, batched),
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
        openapi_extra=document.job_response(task, batched),
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
        openapi_extra=document.bulk(task),
        operation_id=f"submit_many_{task.name}".replace("-", "_"),
    )


def _submit_many(model: str) -> None: ...


def _submit(model: str, idempotency_key: IdempotencyKey = None, prefer: Prefer = None) -> None: ...


def _read(id: str, prefer: Prefer = None) -> None: ...
