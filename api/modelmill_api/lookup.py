"""Finding a caller's job."""

from __future__ import annotations

import uuid

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.store import JobRecord
from modelmill_api.callers import Caller
from modelmill_api.openapi.routes import task_path
from modelmill_api.state import ApiState
from modelmill_tasks.contract import Task


async def get_job(state: ApiState, caller: Caller, job_id: str) -> JobRecord:
    """The caller's job of that id.

    Raises:
        ModelmillError: ``job_not_found``, word for word the same for a job of somebody else.
    """
    record = await state.store.get(job_id) if is_uuid(job_id) else None
    if record is None or record.caller != caller.id:
        raise no_such_job(state)
    return record


async def get_task_job(
    state: ApiState, caller: Caller, task: Task, job_id: str, batched: bool | None
) -> JobRecord:
    """The caller's job of that id, which is to be one of ``task``, and batched or not, unless that is None.

    Raises:
        ModelmillError: ``job_not_found``.
    """
    record = await get_job(state, caller, job_id)
    if record.task != task.name or (batched is not None and record.batched != batched):
        raise ModelmillError(
            ErrorCode.JOB_NOT_FOUND,
            f"This job is to be read at {task_path(record.task, record.batched)}/jobs/{record.id}.",
        )
    return record


def no_such_job(state: ApiState) -> ModelmillError:
    hours = state.settings.result_ttl_s / 3600
    return ModelmillError(
        ErrorCode.JOB_NOT_FOUND,
        "There is no such job, or its result has expired: "
        f"results live {hours:g} hours after the job's end, unless it asks otherwise.",
    )


def is_uuid(text: str) -> bool:
    """Whether a job can have that id. Keys are made of ids as they come, so only the usual form will do."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
