"""Jobs: submit and read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from modelmill.store import JobRecord
from modelmill_api.body import json_text, read_body
from modelmill_api.callers import caller_of
from modelmill_api.eta import eta_fields
from modelmill_api.lookup import get_job, get_task_job
from modelmill_api.middleware.metrics import name_route
from modelmill_api.parameters import IdempotencyKey, Prefer
from modelmill_api.paths import task_path
from modelmill_api.problems import READ_PROBLEMS
from modelmill_api.responses import job_response
from modelmill_api.room import Place
from modelmill_api.schemas import JobDocument
from modelmill_api.state import ApiState, State, state_of
from modelmill_api.submitting import SubmitRequest, submit
from modelmill_api.waiting import preferred_wait, read_as_preferred
from modelmill_tasks.registry import find_task


def add_routes(app: FastAPI) -> None:
    """Adds the four routes that every job takes, for all tasks alike. Add them before all other routes.

    They are plain Starlette routes. FastAPI's own take twice as long for a request, and one route per task
    would mean that they are tried one after the other. ``openapi.routes`` describes them in the OpenAPI
    document, task by task.
    """
    for batched in (True, False):
        path = task_path("{task}", batched)
        app.add_route(path + "/jobs/{id}", _read_handler(batched), ["GET"])
        app.add_route(path + "/{model}/jobs", _submit_handler(batched), ["POST"])


def _submit_handler(batched: bool) -> Callable[[Request], Awaitable[Response]]:
    async def submit_job(request: Request) -> Response:
        task, model = find_task(request.path_params["task"]), request.path_params["model"]
        name_route(request.scope, task_path(task.name, batched) + "/{model}/jobs")
        state, caller, idempotency_key = state_of(request), caller_of(request), _idempotency_key(request)
        wait_s = preferred_wait(request.headers.getlist("prefer"))
        await state.directory.check(task, model)
        with Place(state.room) as place:
            # No variable here may hold the body while the caller waits.
            return await submit(
                request,
                state,
                SubmitRequest(
                    caller=caller,
                    task=task,
                    model=model,
                    body=json_text(await read_body(request, state.settings.max_body_bytes, place)),
                    batched=batched,
                    idempotency_key=idempotency_key,
                ),
                wait_s,
                place,
            )

    return submit_job


def _read_handler(batched: bool) -> Callable[[Request], Awaitable[Response]]:
    async def read(request: Request) -> Response:
        state, job_id = state_of(request), request.path_params["id"]
        task = find_task(request.path_params["task"])
        name_route(request.scope, task_path(task.name, batched) + "/jobs/{id}")
        prefer, caller = request.headers.getlist("prefer"), caller_of(request)
        return await _read(
            request, state, job_id, prefer, lambda: get_task_job(state, caller, task, job_id, batched)
        )

    return read


_IDEMPOTENCY_KEY: TypeAdapter[str | None] = TypeAdapter(IdempotencyKey)


def _idempotency_key(request: Request) -> str:
    """The header's value, checked as FastAPI would check it; empty if there is none."""
    given = request.headers.get("idempotency-key")
    if given is None:
        return ""
    try:
        return _IDEMPOTENCY_KEY.validate_python(given) or ""
    except ValidationError as error:
        problems = [
            {**item, "loc": ("header", "idempotency-key")} for item in error.errors(include_input=False)
        ]
        raise RequestValidationError(problems) from None


async def _read(
    request: Request,
    state: ApiState,
    job_id: str,
    prefer: Sequence[str] | None,
    read: Callable[[], Awaitable[JobRecord]],
) -> Response:
    record, headers = await read_as_preferred(request, state, job_id, prefer, read)
    more = {} if record.status.is_terminal else await eta_fields(record, state)
    return job_response(record, more, headers)


router = APIRouter(tags=["jobs"])


@router.get(
    "/api/jobs/{id}",
    response_model=JobDocument,
    responses=READ_PROBLEMS,
    summary="Read a job of any task",
)
async def read_job(id: str, request: Request, state: State, prefer: Prefer = None) -> Response:
    caller = caller_of(request)
    return await _read(request, state, id, prefer, lambda: get_job(state, caller, id))
