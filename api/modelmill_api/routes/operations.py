"""For operators: the workers, and the metrics."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter, Depends, Response

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import ModelPhase
from modelmill.store import NodeRecord
from modelmill_api.callers import admin_only
from modelmill_api.middleware.metrics import MEDIA_TYPE, Exposition
from modelmill_api.problems import describe_problems
from modelmill_api.schemas import Worker, WorkerModel
from modelmill_api.state import State

logger = logging.getLogger(__name__)


router = APIRouter(tags=["operations"], dependencies=[Depends(admin_only)])

SNAPSHOT_TIMEOUT_S = 5.0
"""Scrapers give up after ten seconds by default. A store that does not answer must be reported before."""


@router.get(
    "/api/workers",
    summary="List the live worker nodes",
    responses=describe_problems(ErrorCode.STORE_UNAVAILABLE),
    response_model_exclude_none=True,
)
async def list_workers(state: State) -> list[Worker]:
    return [_worker(node) for node in await state.store.nodes()]


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    description="Numbers of the whole system come from the job store and are the same from every API "
    "process. `modelmill_http_*` and `process_*` are those of the process that answers.",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}, "description": "The text format, version 0.0.4."}},
)
async def metrics(state: State) -> Response:
    try:
        async with asyncio.timeout(SNAPSHOT_TIMEOUT_S):
            snapshot = await state.store.snapshot()
            warnings = await state.store.server.warnings()
    except (ModelmillError, TimeoutError) as error:
        logger.warning("metrics without the job store: %s", error)
        snapshot, warnings = None, []
    state.metrics.waiting.set(state.news.waiting)
    return Response(Exposition(state.metrics, snapshot, warnings).text(), media_type=MEDIA_TYPE)


def _worker(node: NodeRecord) -> Worker:
    parent, child = node.parent, node.child
    return Worker(
        name=node.name,
        host=parent.host,
        device=parent.device,
        cuda_visible_devices=parent.cuda_visible_devices,
        pid=parent.pid,
        version=parent.version,
        child_pid=None if child is None else child.pid,
        started_at=None if parent.started_at is None else datetime.fromtimestamp(parent.started_at, UTC),
        models=[_model(node, model, tasks) for model, tasks in parent.models.items()],
    )


def _model(node: NodeRecord, model: str, tasks: Sequence[str]) -> WorkerModel:
    state = node.state_of(model)
    said: dict[str, Any] = {"status": ModelPhase.UNINITIALIZED.value, **(state.document if state else {})}
    since = said.pop("since", None)
    return WorkerModel(
        name=model,
        tasks=list(tasks),
        since=None if since is None else datetime.fromtimestamp(since, UTC),
        **said,
    )
