"""Finds a caller's job."""

from __future__ import annotations

import uuid

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.store import JobRecord
from modelmill_api.callers import Caller
from modelmill_api.paths import task_path
from modelmill_api.state import ApiState
from modelmill_tasks.contract import Task


async def get_job(state: ApiState, caller: Caller, job_id: str) -> JobRecord:
    """The caller's job of that id.

    Raises:
        ModelmillError: ``job_not_found``, in the same words for another caller's job.
    """
    record = await state.store.get(job_id) if is_uuid(job_id) else None
    if record is None or record.caller != caller.id:
        raise no_such_job(state)
    return record


async def get_task_job(
    state: ApiState, caller: Caller, task: Task, job_id: str, batched: bool | None
) -> JobRecord:
    """The caller's job of that id, if it is one of ``task``.

    Args:
        state: The API's.
        caller: Who asks.
        task: The task in the request's path.
        job_id: The id in the request's path.
        batched: Whether it must be a batched job; None if both kinds will do.

    Raises:
        ModelmillError: ``job_not_found``.
    """
    record = await get_job(state, caller, job_id)
    if record.task != task.name or (batched is not None and record.batched != batched):
        raise ModelmillError(
            ErrorCode.JOB_NOT_FOUND,
            f"Read this job at {task_path(record.task, record.batched)}/jobs/{record.id}.",
        )
    return record


def no_such_job(state: ApiState) -> ModelmillError:
    """``job_not_found``."""
    hours = state.settings.result_ttl_s / 3600
    return ModelmillError(
        ErrorCode.JOB_NOT_FOUND,
        "There is no such job, or its result has expired: "
        f"results live {hours:g} hours after the job's end, unless it asks otherwise.",
    )


def is_uuid(text: str) -> bool:
    """Whether a job can have that id. Only the usual form counts: keys in the store hold ids as they come."""
    try:
        return str(uuid.UUID(text)) == text
    except ValueError:
        return False
