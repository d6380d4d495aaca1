"""What the API answers with, and how a job's record becomes a document."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import Response
from pydantic import BaseModel, ConfigDict, Field

from modelmill.errors import ErrorCode
from modelmill.states import Status
from modelmill.store import JobRecord


class JobAccepted(BaseModel):
    """A job was accepted: it will not be lost, and ends exactly once."""

    id: str = Field(
        description="Poll it at the Location header's address.",
        examples=["05032039-e7dd-4ca5-8941-ebff9f5f2e09"],
    )
    status: Status


class JobError(BaseModel):
    """Why a job, or one item of a batched job, failed."""

    code: ErrorCode
    message: str
    retryable: bool = Field(description="Whether submitting it again may help.")
    deliveries: int | None = Field(None, description="How often it was handed to a worker.")


class Timings(BaseModel):
    """Where a job's time went."""

    queued_s: float
    load_s: float = Field(description="Waiting for its model to be loaded.")
    preprocess_s: float
    forward_s: float
    postprocess_s: float


class Progress(BaseModel):
    """How far a job is that runs: a batched one, or one of many steps."""

    done: int = Field(description="Items that are finished and will not run again, or steps that are done.")
    total: int = Field(description="Of steps: how many there are at most.")
    unit: str = Field(description="items, tokens, steps, …")


class JobDocument(BaseModel):
    """A job. ``result`` is there only when complete, ``error`` only when failed."""

    id: str
    status: Status
    task: str
    model: str
    lane: str
    created_at: datetime
    started_at: datetime | None = None
    finished_at: datetime | None = None
    expires_at: datetime | None = Field(None, description="Of a job that has ended: when it is forgotten.")
    metadata: dict[str, Any] | None = Field(None, description="As it was submitted.")
    tags: list[str] | None = Field(None, description="As they were submitted.")
    deliveries: int = Field(description="How often it was handed to a worker.")
    items: int | None = Field(None, description="Items of a batched job.")
    failed_items: int | None = Field(None, description="Items of a batched job that failed.")
    batch_size: int | None = Field(None, description="Items in the forward pass it ran in.")
    timings: Timings | None = None
    node: str | None = Field(None, description="The worker that ran it.")
    device: str | None = None
    revision: str | None = Field(
        None, description="Revision of the model's weights, where its entry pins one."
    )
    position: int | None = Field(
        None, description="Of a job that waits: how many are before it in its model's queue; 0 is next."
    )
    eta_seconds: float | None = Field(
        None,
        description="Of a job that has not ended: an estimate of the time left, from what the model's "
        "workers did of late; null when there is nothing to estimate from.",
    )
    eta_reason: str | None = Field(
        None,
        description="Of a job that has not ended, what it waits for: `next`, `behind 14 jobs`, "
        "`loading model`, `model not loaded`, `model failed to load`, `no live worker`, or `running`.",
    )
    progress: Progress | None = Field(
        None, description="Of a batched job that runs, and of one that takes many steps."
    )
    error: JobError | None = None


class JobPage(BaseModel):
    """Some of a caller's jobs, newest first."""

    jobs: list[JobDocument] = Field(description="Without their results.")
    next: str | None = Field(
        description="What `cursor` is to be for the next page; null after the last. With a filter that "
        "lets few jobs through, a page may be short or empty although others follow."
    )


MAX_COLLECTED = 1000
"""Jobs that one request may collect."""
_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


class CollectInput(BaseModel):
    """Which jobs are asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: list[Annotated[str, Field(pattern=_UUID)]] = Field(min_length=1, max_length=MAX_COLLECTED)
    delete: bool = Field(
        False, strict=True, description="Delete them instead, whether they have ended or not."
    )


class Deleted(BaseModel):
    """The answer where jobs were to be deleted."""

    deleted: int = Field(description="Those that were there.")


class ModelJob(BaseModel):
    """A job in a model's status."""

    id: str
    status: Status


class WorkerState(BaseModel):
    """What a worker node says of a model."""

    # It grows with time: what is not known here is passed on.
    model_config = ConfigDict(extra="allow")

    status: str | None = None
    since: datetime | None = Field(None, description="Since when it is so.")


class ModelStatus(BaseModel):
    """Where a model stands, over all live workers that serve it."""

    status: str = Field(
        description="loading, running, stopped, failed, starting (asked for), or uninitialized (never used)."
    )
    jobs: list[ModelJob] = Field(description="Jobs that have not ended; at most 100.")
    error: str | None = Field(None, description="Why it failed to load.")
    workers: dict[str, WorkerState] = Field(
        default_factory=dict, description="What each live worker says of it."
    )


class WorkerModel(BaseModel):
    """A model that a worker node serves."""

    # What a node says of a model grows with time: it is passed on.
    model_config = ConfigDict(extra="allow")

    name: str
    tasks: list[str]
    status: str = Field(description="loading, running, stopped, failed, or uninitialized (never used there).")
    since: datetime | None = None
    memory_mib: int | None = Field(None, description="What it takes of the device's memory.")
    load_s: float | None = Field(None, description="How long it took to load.")
    revision: str | None = None
    error: str | None = Field(None, description="Why it failed to load.")


class Worker(BaseModel):
    """A worker node that lives: one device, one process that holds models."""

    name: str = Field(examples=["gpu-host-1-0"])
    host: str | None = None
    device: str | None = Field(None, examples=["cuda", "cpu"])
    cuda_visible_devices: str | None = Field(None, description="The GPU that it is pinned to.")
    pid: int | None = Field(None, description="The node's process.")
    child_pid: int | None = Field(None, description="The process that holds the models.")
    started_at: datetime | None = None
    version: str | None = None
    models: list[WorkerModel]


class Readiness(BaseModel):
    """Whether jobs are accepted, and which models have somebody to run them."""

    status: str = Field(description="ready, or unavailable when the job store does not answer.")
    redis: str
    models: dict[str, int] = Field(description="Live workers by model.")


def job_response(
    record: JobRecord, outlook: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """The document of a job. The result goes out as it was written, without being parsed again.

    Args:
        record: The job.
        outlook: More fields, of a job that has not ended.
        headers: More headers.
    """
    body = job_json(record, outlook)
    # A hint for whoever polls: soon, but not at once.
    hint = {} if record.status.is_terminal else {"Retry-After": "1"}
    return Response(body, media_type="application/json", headers={**hint, **(headers or {})})


def job_json(record: JobRecord, outlook: Mapping[str, Any]) -> bytes:
    """The document of a job, with its result as it was written."""
    body = json.dumps(job_document(record, outlook), separators=(",", ":")).encode()
    if record.status is Status.COMPLETE and record.result_json is not None:
        body = body[:-1] + b',"result":' + record.result_json + b"}"
    return body


def job_document(record: JobRecord, outlook: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a job, without its result."""
    document: dict[str, Any] = {
        "id": record.id,
        "status": record.status.value,
        "task": record.task,
        "model": record.model,
        "lane": record.lane,
        "created_at": _iso(record.created_at),
        "started_at": _iso(record.started_at),
        "finished_at": _iso(record.finished_at),
        "deliveries": record.deliveries,
        **({"items": record.items} if record.batched else {}),
        **({"metadata": record.metadata} if record.metadata is not None else {}),
        **({"tags": record.tags} if record.tags else {}),
        **({"expires_at": _iso(record.expires_at)} if record.expires_at is not None else {}),
        **record.details,
        **outlook,
    }
    if record.status is Status.FAILED:
        document["error"] = record.error
    return document


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
