"""Liveness and readiness probes."""

from __future__ import annotations

from fastapi import APIRouter, Response

from modelmill.errors import ModelmillError
from modelmill.store import StoreWarningCode
from modelmill_api.schemas import Readiness, ReadinessWarning
from modelmill_api.state import State

router = APIRouter(prefix="/health", tags=["health"])


@router.get("/live", summary="The process answers")
async def live() -> dict[str, str]:
    return {"status": "live"}


@router.get(
    "/ready",
    summary="Jobs are accepted",
    responses={503: {"model": Readiness, "description": "The job store does not answer or takes no jobs."}},
)
async def ready(state: State, response: Response) -> Readiness:
    try:
        await state.store.ping()
        nodes = await state.store.nodes()
        found = await state.store.server.warnings()
    except ModelmillError:
        response.status_code = 503
        response.headers["Retry-After"] = "2"
        return Readiness(status="unavailable", redis="down", models={})
    workers: dict[str, int] = {}
    for node in nodes:
        for model in node.models:
            workers[model] = workers.get(model, 0) + 1
    warnings = [ReadinessWarning(code=each.code.value, message=each.message) for each in found]
    if any(each.code is StoreWarningCode.REPLICA for each in found):
        response.status_code = 503
        return Readiness(status="unavailable", redis="up", models=workers, warnings=warnings)
    return Readiness(status="ready", redis="up", models=workers, warnings=warnings)
