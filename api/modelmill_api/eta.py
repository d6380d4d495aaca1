"""Estimates when a job ends, and says what it waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from modelmill.states import ModelPhase, Status
from modelmill.store import JobProgress, JobRecord, NodeRecord, Standing
from modelmill_api.state import ApiState


async def eta_fields(record: JobRecord, state: ApiState) -> dict[str, Any]:
    """The fields that the document of a job has until it ends: position, estimate, reason, progress."""
    if record.status is Status.STARTING:
        standing = await state.store.standing(record)
        return _queued(record.model, standing, await state.directory.recent_nodes_serving(record.model))
    if not record.batched and record.progress is None:
        return _document(None, None, "running")
    standing = await state.store.standing(record)
    # Workers report steps for plain jobs only.
    progress = record.progress or JobProgress(standing.items_done, record.items, "items")
    return _document(None, _rest(record, standing, progress), "running") | {"progress": asdict(progress)}


def _queued(model: str, standing: Standing, nodes: Sequence[NodeRecord]) -> dict[str, Any]:
    position = standing.position
    if not nodes:
        return _document(position, None, "no live worker")
    phases = [node.phase_of(model) for node in nodes]
    able = phases.count(ModelPhase.RUNNING)
    if not able:
        if ModelPhase.LOADING in phases:
            reason = "loading model"
        elif set(phases) == {ModelPhase.FAILED}:
            reason = "model failed to load"
        else:
            reason = "model not loaded"
        return _document(position, None, reason)
    if position is None:
        # A worker has claimed the job since the record was read.
        return _document(None, None, "running")
    eta_s = (position + 1) / (standing.jobs_per_s * able) if standing.jobs_per_s else None
    if position == 0:
        return _document(position, eta_s, "next")
    return _document(position, eta_s, f"behind {position} job{'s' if position > 1 else ''}")


def _rest(record: JobRecord, standing: Standing, progress: JobProgress) -> float | None:
    """Assumes that each item, token or step that is left takes as long as one that is done."""
    if not progress.done or record.started_at is None:
        return None
    spent_s = max(0.0, standing.now - record.started_at)
    return spent_s / progress.done * (progress.total - progress.done)


def _document(position: int | None, eta_s: float | None, reason: str) -> dict[str, Any]:
    return {
        "position": position,
        "eta_seconds": None if eta_s is None else round(eta_s, 2),
        "eta_reason": reason,
    }
