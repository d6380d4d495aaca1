"""Jobs: submit and read."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from modelmill.errors import ModelmillError
from modelmill.states import Status
from modelmill.store import JobRecord, Submission
from modelmill_api.body import read_body
from modelmill_api.callers import Caller, caller_of, rate_limit_fields
from modelmill_api.eta import outlook
from modelmill_api.lookup import get_job, get_task_job, is_uuid
from modelmill_api.middleware.metrics import name_route
from modelmill_api.openapi.routes import READ_PROBLEMS, IdempotencyKey, task_path
from modelmill_api.responses import JobDocument, job_response
from modelmill_api.state import ApiState, State, state_of
from modelmill_api.submitting import accept, prepare
from modelmill_api.waiting import Prefer, preferred_wait, read_at_end, wait_for_end
from modelmill_tasks.contract import Task
from modelmill_tasks.registry import find_task


def add_routes(app: FastAPI) -> None:
    """The four routes that every job takes, for all tasks; to be added before all others.

    They are plain Starlette routes: FastAPI's own take twice as long for a request, and one for each task
    would be tried one after the other. What FastAPI makes of a route's signature for the documentation
    is in ``documentation.py``, task by task.
    """
    for batched in (True, False):
        path = task_path("{task}", batched)
        app.add_route(path + "/jobs/{id}", _read_handler(batched), ["GET"])
        app.add_route(path + "/{model}/jobs", _submit_handler(batched), ["POST"])


def _submit_handler(batched: bool) -> Callable[[Request], Awaitable[Response]]:
    async def submit(request: Request) -> Response:
        task = find_task(request.path_params["task"])
        name_route(request.scope, task_path(task.name, batched) + "/{model}/jobs")
        return await _submit(task, batched, request)

    return submit


def _read_handler(batched: bool) -> Callable[[Request], Awaitable[Response]]:
    async def read(request: Request) -> Response:
        state, job_id = state_of(request), request.path_params["id"]
        task = find_task(request.path_params["task"])
        name_route(request.scope, task_path(task.name, batched) + "/jobs/{id}")
        prefer = request.headers.getlist("prefer")
        caller = caller_of(request)
        return await _read(
            request, state, job_id, prefer, lambda: get_task_job(state, caller, task, job_id, batched)
        )

    return read


_IDEMPOTENCY_KEY: TypeAdapter[str | None] = TypeAdapter(IdempotencyKey)


def _idempotency_key(request: Request) -> str:
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


async def _submit(task: Task, batched: bool, request: Request) -> Response:
    state, caller, model = state_of(request), caller_of(request), request.path_params["model"]
    idempotency_key = _idempotency_key(request)
    wait_s = preferred_wait(request.headers.getlist("prefer"))
    await state.directory.check(task, model)
    body = await read_body(request, state.settings.max_body_bytes)
    submission = await prepare(
        state, caller, task, model, body, batched=batched, idempotency_key=idempotency_key
    )
    return await answer_submit(request, state, caller, submission, wait_s)


async def answer_submit(
    request: Request, state: ApiState, caller: Caller, submission: Submission, wait_s: int | None
) -> Response:
    """Has a prepared job accepted, and answers with it: at its end, if the caller waits for that.

    Raises:
        ModelmillError: it was refused.
    """
    path = task_path(submission.task, submission.batched)
    if wait_s is None:
        accepted = await accept(state, submission)
        return _accepted(path, accepted.id, rate_limit_fields(caller.limits, accepted.remaining))
    # On the list before anybody can run it, so that nobody need look whether it has ended already.
    with state.news.until_end(submission.id) as ended:
        accepted = await accept(state, submission)
        job_id = accepted.id
        headers = applied_wait(wait_s) | rate_limit_fields(caller.limits, accepted.remaining)
        # Accepted it is, whatever happens to the store from now on.
        with suppress(ModelmillError):
            if job_id != submission.id:
                record = await read_at_end(
                    request, state, job_id, wait_s, lambda: get_job(state, caller, job_id)
                )
            elif not await wait_for_end(request, ended, wait_s):
                return _accepted(path, job_id, headers)  # nobody is there to read it
            else:
                record = await get_job(state, caller, job_id)
            if record.status.is_terminal:
                return job_response(record, {}, {"Location": f"{path}/jobs/{job_id}", **headers})
    return _accepted(path, job_id, headers)


def _accepted(path: str, job_id: str, headers: Mapping[str, str]) -> Response:
    """The 202 of a job."""
    body = f'{{"id":"{job_id}","status":"{Status.STARTING.value}"}}'
    return Response(body, 202, {"Location": f"{path}/jobs/{job_id}", **headers}, "application/json")


async def _read(
    request: Request,
    state: ApiState,
    job_id: str,
    prefer: list[str] | None,
    find: Callable[[], Awaitable[JobRecord]],
) -> Response:
    headers = {"Vary": "Prefer"}
    wait_s = preferred_wait(prefer)
    if wait_s is None or not is_uuid(job_id):
        record = await find()
    else:
        record = await read_at_end(request, state, job_id, wait_s, find)
        headers |= applied_wait(wait_s)
    return job_response(record, {} if record.status.is_terminal else await outlook(record, state), headers)


def applied_wait(wait_s: int) -> dict[str, str]:
    """The header that says that ``Prefer: wait`` was honoured."""
    return {"Preference-Applied": f"wait={wait_s}"}


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
