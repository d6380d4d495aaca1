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


class JobWarning(BaseModel):
    """Something that was lost of an item's input, although the model answered."""

    item: int | None = Field(description="The item's index; 0 in a job that is not batched.")
    # A newer worker may use further codes. They are passed on.
    code: str = Field(description="text_cut, sound_cut, image_scaled_down, …", examples=["text_cut"])
    message: str = Field(examples=["The text was cut to 256 tokens."])


class Timings(BaseModel):
    """How long each step of a job took."""

    queued_s: float
    load_s: float = Field(description="How long the job waited for its model to load.")
    preprocess_s: float
    forward_s: float
    postprocess_s: float


class Progress(BaseModel):
    """How far a running job is, if it is batched or has many steps."""

    done: int = Field(description="Finished items, which do not run again, or finished steps.")
    total: int = Field(description="All items; or the largest possible number of steps.")
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
    expires_at: datetime | None = Field(None, description="When the job is deleted, if it has ended.")
    metadata: dict[str, Any] | None = Field(None, description="As submitted.")
    tags: list[str] | None = Field(None, description="As submitted.")
    deliveries: int = Field(description="How often it was handed to a worker.")
    items: int | None = Field(None, description="Items of a batched job.")
    failed_items: int | None = Field(None, description="Items of a batched job that failed.")
    batch_size: int | None = Field(None, description="Items in the forward pass it ran in.")
    warnings: list[JobWarning] | None = Field(
        None, description="What was lost of the input, if something was: see the page on warnings."
    )
    timings: Timings | None = None
    node: str | None = Field(None, description="The worker that ran it.")
    device: str | None = None
    revision: str | None = Field(
        None, description="Revision of the model's weights, where its entry pins one."
    )
    position: int | None = Field(
        None, description="For a job that waits: how many jobs of its model run first; 0 is next."
    )
    eta_seconds: float | None = Field(
        None,
        description="For a job that has not ended: an estimate of the time left, from the recent speed of "
        "the model's workers; null if there is no basis for one.",
    )
    eta_reason: str | None = Field(
        None,
        description="For a job that has not ended, what it waits for: `next`, `behind 14 jobs`, "
        "`loading model`, `model not loaded`, `model failed to load`, `no live worker`, or `running`.",
    )
    progress: Progress | None = Field(
        None, description="For a running job that is batched or has many steps."
    )
    error: JobError | None = None


class JobPage(BaseModel):
    """Some of a caller's jobs, newest first."""

    jobs: list[JobDocument] = Field(description="Without their results.")
    next: str | None = Field(
        description="The `cursor` of the next page; null on the last page. If few jobs match the filters, "
        "a page may be short or empty although others follow."
    )


MAX_COLLECTED = 1000
"""Jobs that one request may collect."""
_UUID = "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"


class CollectInput(BaseModel):
    """The jobs to collect."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    ids: list[Annotated[str, Field(pattern=_UUID)]] = Field(min_length=1, max_length=MAX_COLLECTED)
    delete: bool = Field(
        False, strict=True, description="Delete the jobs instead, even those that have not ended."
    )


class Deleted(BaseModel):
    """The answer to a request that deletes jobs."""

    deleted: int = Field(description="How many jobs existed.")


class ModelJob(BaseModel):
    """A job in a model's status."""

    id: str
    status: Status


class WorkerState(BaseModel):
    """A worker node's announcement about a model."""

    # A newer worker may announce further fields. They are passed on.
    model_config = ConfigDict(extra="allow")

    status: str | None = None
    since: datetime | None = Field(None, description="When this status began.")


class ModelStatus(BaseModel):
    """The status of a model over all live workers that serve it."""

    status: str = Field(
        description="loading, running, stopped, failed, starting (asked for), or uninitialized (never used)."
    )
    jobs: list[ModelJob] = Field(description="Jobs that have not ended; at most 100.")
    error: str | None = Field(None, description="Why the model failed to load.")
    workers: dict[str, WorkerState] = Field(
        default_factory=dict, description="The announcement of each live worker, by name."
    )


class WorkerModel(BaseModel):
    """A model that a worker node serves."""

    # A newer worker may announce further fields. They are passed on.
    model_config = ConfigDict(extra="allow")

    name: str
    tasks: list[str]
    status: str = Field(description="loading, running, stopped, failed, or uninitialized (never used there).")
    since: datetime | None = None
    memory_mib: int | None = Field(None, description="Memory that it takes on the device.")
    load_s: float | None = Field(None, description="How long loading took.")
    revision: str | None = None
    error: str | None = Field(None, description="Why the model failed to load.")


class Worker(BaseModel):
    """A live worker node: one device, and one process that runs models."""

    name: str = Field(examples=["gpu-host-1-0"])
    host: str | None = None
    device: str | None = Field(None, examples=["cuda", "cpu"])
    cuda_visible_devices: str | None = Field(None, description="The GPU that the node is pinned to.")
    pid: int | None = Field(None, description="The node's process.")
    child_pid: int | None = Field(None, description="The process that runs the models.")
    started_at: datetime | None = None
    version: str | None = None
    models: list[WorkerModel]


class ReadinessWarning(BaseModel):
    """Something that does not stop jobs now, and that may lose them later."""

    code: str = Field(description="Stable, for programs.", examples=["no_append_only_file"])
    message: str = Field(description="What is wrong, and what to do.")


class Readiness(BaseModel):
    """Whether jobs are accepted, and how many workers each model has."""

    status: str = Field(description="ready; or unavailable, if the store does not answer or is a replica.")
    redis: str
    models: dict[str, int] = Field(description="Live workers by model.")
    warnings: list[ReadinessWarning] = Field(
        [], description="What is wrong with how the job store is set up. It is checked once a minute."
    )


class FileDocument(BaseModel):
    """An uploaded file. Its ``id`` can stand wherever a task takes an image or audio."""

    id: str = Field(examples=["file:0c6e4c5b-5f0e-4f5c-9a39-0d5f0c1f7f55"])
    bytes: int
    media_type: str = Field(description="From the file's bytes, not from the upload's headers.")
    sha256: str = Field(description="The hash of the bytes, in hexadecimal.")
    name: str | None = Field(description="From the upload.")
    created_at: datetime
    expires_at: datetime = Field(description="When the file is deleted; later, if a job still needs it.")


class WebhookSecret(BaseModel):
    """The secret that signs webhooks."""

    key: str = Field(
        description="`whsec_` and base64, as the libraries of Standard Webhooks take it.",
        examples=["whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD"],
    )


class WebhookDelivery(BaseModel):
    """One attempt to send a webhook."""

    id: str = Field(description="The header `webhook-id`; the same for all attempts.")
    event: str = Field(description="started, progress or ended.")
    attempt: int = Field(description="1 is the first.")
    at: datetime
    outcome: DeliveryOutcome = Field(
        description="delivered; failed; refused, if the URL is not allowed; or gone, after status 410."
    )
    status: int | None = Field(description="The receiver's; null if it did not answer.")
    error: str | None
    duration_s: float
    next_attempt_at: datetime | None = Field(description="When it is sent again; null if it is not.")
