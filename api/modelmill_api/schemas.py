"""Bodies of requests and answers that are the same for every task."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from modelmill.errors import ErrorCode
from modelmill.states import Status
from modelmill.store.webhooks import DeliveryOutcome


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


class FileDocument(BaseModel):
    """A file that was uploaded. Its ``id`` may stand wherever a task takes an image or audio."""

    id: str = Field(examples=["file:0c6e4c5b-5f0e-4f5c-9a39-0d5f0c1f7f55"])
    bytes: int
    media_type: str = Field(description="What it is by its own bytes; what the upload says does not count.")
    sha256: str = Field(description="Of the bytes, in hexadecimal.")
    name: str | None = Field(description="As the upload says.")
    created_at: datetime
    expires_at: datetime = Field(description="When it goes; later, if a job needs it still.")


class WebhookSecret(BaseModel):
    """What webhooks are signed with."""

    key: str = Field(
        description="For the libraries of Standard Webhooks as it is: `whsec_` and base64.",
        examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"],
    )


class WebhookDelivery(BaseModel):
    """One attempt to send a webhook."""

    id: str = Field(description="The header `webhook-id`; the same for each attempt.")
    event: str = Field(description="started, progress or ended.")
    attempt: int = Field(description="1 is the first.")
    at: datetime
    outcome: DeliveryOutcome = Field(
        description="delivered; failed; refused, as a URL that may not be asked; or gone, after status 410."
    )
    status: int | None = Field(description="The receiver's; null when it gave no answer.")
    error: str | None
    duration_s: float
    next_attempt_at: datetime | None = Field(description="When it is sent again; null when it is not.")
