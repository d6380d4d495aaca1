"""Lists tasks and models, and starts and stops models."""

from __future__ import annotations

from fastapi import APIRouter, Depends, Request

from modelmill.broker import LOAD, UNLOAD
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import ModelPhase
from modelmill.store import NodeRecord
from modelmill_api.callers import Caller, admin_only, caller_of
from modelmill_api.problems import describe_problems
from modelmill_api.schemas import ModelJob, ModelStatus, WorkerState
from modelmill_api.state import ApiState, State
from modelmill_tasks.registry import all_tasks, find_task

router = APIRouter()

MODEL_PROBLEMS = describe_problems(ErrorCode.MODEL_NOT_FOUND, ErrorCode.STORE_UNAVAILABLE)
ORDER_PROBLEMS = describe_problems(
    ErrorCode.MODEL_NOT_FOUND, ErrorCode.NO_LIVE_WORKER, ErrorCode.STORE_UNAVAILABLE
)


@router.get("/api/tasks", summary="List tasks", tags=["tasks"])
async def list_tasks() -> list[str]:
    return list(all_tasks())


@router.get(
    "/api/tasks/{task}/models",
    summary="List the models that answer a task",
    tags=["tasks"],
    responses=describe_problems(ErrorCode.TASK_NOT_FOUND),
)
async def list_task_models(task: str, state: State) -> list[str]:
    name = find_task(task).name
    return [model for model, tasks in (await state.directory.models()).items() if name in tasks]


@router.get("/api/models", summary="List models", tags=["models"])
async def list_models(state: State) -> list[str]:
    return list(await state.directory.models())


@router.get(
    "/api/models/{model}/tasks",
    tags=["models"],
    summary="List the tasks that a model answers",
    responses=describe_problems(ErrorCode.MODEL_NOT_FOUND),
)
async def list_model_tasks(model: str, state: State) -> list[str]:
    return list(await state.directory.tasks_of(model))


@router.get(
    "/api/models/{model}/status",
    tags=["models"],
    summary="Read a model's status",
    responses=MODEL_PROBLEMS,
    response_model_exclude_none=True,
)
async def model_status(model: str, request: Request, state: State) -> ModelStatus:
    await state.directory.tasks_of(model)
    return await _status(model, state, caller_of(request))


@router.post(
    "/api/models/{model}/start",
    dependencies=[Depends(admin_only)],
    tags=["models"],
    status_code=202,
    summary="Load a model on every worker that serves it",
    responses=ORDER_PROBLEMS,
    response_model_exclude_none=True,
)
async def start_model(model: str, request: Request, state: State) -> ModelStatus:
    nodes = await _workers_of(model, state)
    if not all(node.phase_of(model) is ModelPhase.RUNNING for node in nodes):
        await state.store.mark_model_starting(model)
    await state.bells.order(LOAD, model, [node.name for node in nodes])
    return await _status(model, state, caller_of(request))


@router.post(
    "/api/models/{model}/stop",
    dependencies=[Depends(admin_only)],
    tags=["models"],
    status_code=202,
    summary="Unload a model on every worker; its next job loads it again",
    responses=ORDER_PROBLEMS,
    response_model_exclude_none=True,
)
async def stop_model(model: str, request: Request, state: State) -> ModelStatus:
    nodes = await _workers_of(model, state)
    await state.bells.order(UNLOAD, model, [node.name for node in nodes])
    return await _status(model, state, caller_of(request))


async def _workers_of(model: str, state: ApiState) -> list[NodeRecord]:
    await state.directory.tasks_of(model)
    nodes = await state.directory.nodes_serving_now(model)
    if not nodes:
        raise ModelmillError(
            ErrorCode.NO_LIVE_WORKER,
            f"No live worker serves {model!r}. Start one with: modelmill worker",
            retry_after_s=5,
        )
    return nodes


async def _status(model: str, state: ApiState, caller: Caller) -> ModelStatus:
    """The best status of any worker, because a job needs only one of them."""
    jobs = await state.store.open_jobs(model, caller.id)
    # In this order: a worker announces its status before it removes the note that the model is starting.
    is_starting = await state.store.is_model_starting(model)
    nodes = await state.directory.nodes_serving_now(model)
    phases = {node.phase_of(model) for node in nodes} | ({ModelPhase.STARTING} if is_starting else set())
    best = next((phase for phase in ModelPhase if phase in phases), ModelPhase.UNINITIALIZED)
    states = {node.name: found for node in nodes if (found := node.state_of(model)) is not None}
    error = next((found.error for found in states.values() if found.error), None)
    return ModelStatus(
        status=best.value,
        jobs=[ModelJob(id=job, status=status) for job, status in jobs],
        error=error if best is ModelPhase.FAILED else None,
        workers={name: WorkerState(**found.document) for name, found in states.items()},
    )
