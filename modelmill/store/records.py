"""The types that go into the store and come out of it."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from modelmill.states import Lane, Status

LANE_RANK: dict[Lane, int] = {Lane.INTERACTIVE: 0, Lane.NORMAL: 1, Lane.BULK: 2}


class Verdict(StrEnum):
    """The answers of ``submit``."""

    ACCEPTED = "accepted"
    REPLAYED = "replayed"
    """The Idempotency-Key was seen with this very body: the id is the first job's."""
    CONFLICT = "conflict"
    """The Idempotency-Key was seen with another body."""
    QUEUE_FULL = "queue_full"
    BYTES_FULL = "bytes_full"
    STORE_FULL = "store_full"
    """The server is near its memory limit; the rest of the memory is for results."""
    PAYLOAD_MISSING = "payload_missing"
    """The payload that was written just before is missing (evicted, or the write was refused)."""
    QUOTA_FULL = "quota_full"
    """The caller has reached its limit of jobs that have not ended."""
    RATE_LIMITED = "rate_limited"
    """The caller is over its rate limit."""
    FILE_MISSING = "file_missing"
    """A file that the request names does not exist, or belongs to another caller."""


class Cancellation(StrEnum):
    """The answers of ``cancel``."""

    CANCELED = "canceled"
    """It was queued and has ended now; or it was canceled before."""
    REQUESTED = "requested"
    """It runs. Its worker will see the request."""
    COMPLETE = "complete"
    """It has ended before."""
    FAILED = "failed"
    """It has ended before."""
    MISSING = "missing"


class Deletion(StrEnum):
    """The answers of ``delete`` for one job."""

    DELETED = "deleted"
    DELETING = "deleting"
    """It runs and was asked to cancel. It cannot be read from now on, and goes with its end."""
    MISSING = "missing"


class Wake(StrEnum):
    """A wake word: what wakes a drain that lingers."""

    GO = "go"
    """There is work for its model."""
    LEAVE = "leave"
    """Another model needs its process."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of one caller; None is no limit."""

    max_jobs: int | None = None
    """Jobs that have not ended."""
    jobs_per_minute: float | None = None
    burst: int = 1
    """Jobs that may come at once, at that rate."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to accept. ``body`` is the request as it came; the worker reads the same bytes."""

    id: str
    task: str
    model: str
    body: bytes
    batched: bool = False
    items: int = 1
    lane: Lane = Lane.NORMAL
    caller: str = "anonymous"
    idempotency_key: str = ""
    bell_every: int = 16
    """While jobs wait, a bell is due again after this many: the model's batch size."""
    expires_in_s: float | None = None
    result_ttl_s: float | None = None
    """How long its end can be read; None for the time of the setting."""
    metadata: Mapping[str, Any] | None = None
    tags: Sequence[str] = ()
    webhook: str | None = None
    webhook_events: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """A reference to media in the body, a ``file:`` id or a URL → id of the file that holds the media."""
    blob: str | None = None
    """Name of the body in the blob store; None if the body goes into Redis."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class SubmitReply:
    """The answer to a submission."""

    verdict: Verdict
    id: str
    """The job's; with ``FILE_MISSING``, the file's."""
    bell: bool
    """Whether the API must send a bell."""
    retry_after_s: float = 0.0
    remaining: int | None = None
    """Jobs that may follow at once; None for a caller without a rate limit."""


@dataclass(frozen=True, slots=True)
class ClaimRequest:
    """The request of a drain for jobs. A replay with the same ``fence`` gets the same jobs."""

    model: str
    fence: str
    node: str
    count: int
    """At most this many jobs."""
    max_bytes: int
    """At most this many bytes of requests; the first job is always taken."""
    linger_s: float = 0.0
    """If above 0 and no job waits for any model in ``served``, the node lingers for this time: the next
    job of ``model`` wakes it, without a bell (``WorkerStore.linger``)."""
    served: Collection[str] = ()
    """The models that the node serves."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claimed job: one that is under lease."""

    id: str
    fence: str
    task: str
    batched: bool
    bytes: int
    deliveries: int
    """How often it was claimed, this time included."""
    queued_s: float
    """From its acceptance to this claim."""
    suspect: bool = False
    """It was in progress when its child died, so it runs alone."""
    files: Mapping[str, str] = field(default_factory=dict)
    """A reference to media in the request → id of the file that holds the media."""
    blob: str | None = None
    """Name of the request in the blob store; None if the request is in Redis."""


@dataclass(frozen=True, slots=True)
class ClaimReply:
    """The jobs that one claim took."""

    jobs: tuple[Claimed, ...]
    remaining: int
    """Jobs of the model that are left in the queue."""
    lingers: bool = False
    """No job was there, and the node now counts as lingering: it must wait for a wake word."""


@dataclass(frozen=True, slots=True)
class JobProgress:
    """The progress of a running job: ``done`` of at most ``total``, in ``unit`` (``tokens``, ``steps``,
    …)."""

    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class Beat:
    """The answer to a heartbeat, as job ids."""

    lost: frozenset[str]
    """No longer leased to this worker."""
    cancel: frozenset[str]
    """Their cancellation was requested."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of a job, as a worker reports it. ``result`` is JSON text, for ``complete`` only."""

    id: str
    fence: str
    status: Status
    result: bytes | None = None
    error: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """More fields of the job document: ``batch_size``, ``device``, ``timings``, …; JSON values."""


class Return(StrEnum):
    """Why a job goes back to its place in the queue unfinished."""

    RELEASED = "released"
    """The worker stops, or its child died before it began the job. It does not count as a delivery."""
    SUSPECT = "suspect"
    """The child died while the job was in progress together with others. It runs alone next time."""
    CRASHED = "crashed"
    """The child died while the job, or one item of it, was in progress alone. The third crash ends it."""


OPENING = -1
"""Instead of the index of an item: the child died while it opened the job."""


@dataclass(frozen=True, slots=True)
class Released:
    """A job given back unfinished."""

    id: str
    fence: str
    why: Return = Return.RELEASED
    item: int = 0
    """For ``CRASHED``: the index of the item of a batched job, which fails at its third crash.
    ``OPENING``: the child died while it opened the job; then the whole job fails at the third crash."""


class Settlement(StrEnum):
    """The answers of ``settle`` for one job."""

    OK = "ok"
    REFUSED = "refused"
    """The lease has another fence by now. The result is dropped; that of the other claim counts."""
    MISSING = "missing"
    """The large result that was written before is gone. Settle again."""
    NOT_NOW = "not_now"
    """The server has no memory for a result of this size, or the blob store fails. The job is unchanged:
    keep its result and its lease, and settle again later."""
    TOO_LARGE = "too_large"
    """The server takes no value of this size, now or later. The job is unchanged: settle it without this
    result."""
    UNWRITABLE = "unwritable"
    """The server refuses this very outcome, and it says that it is well. The job is unchanged."""


@dataclass(frozen=True, slots=True)
class UnreportedEnd:
    """An end that no worker reports: by deadline, delivery limit, crash or cancellation."""

    id: str
    task: str
    model: str
    status: Status
    code: str | None
    """The error code of a failed job."""
    deliveries: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """The result of ``reap``."""

    returned: int
    """Jobs of expired leases that went back to the queue."""
    expired: int
    """Jobs that ended at their deadline."""
    bells: tuple[str, ...]
    """Models for which the caller must send a bell."""


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A job as the store knows it. Times are seconds since the epoch, by the clock of Redis."""

    id: str
    task: str
    model: str
    batched: bool
    lane: str
    caller: str
    status: Status
    items: int
    deliveries: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    result_json: bytes | None
    """The result as it was written: JSON text. The API passes it on unparsed."""
    error: dict[str, Any] | None
    details: dict[str, Any]
    cancel_requested: bool
    progress: JobProgress | None
    """For a job with many steps: from its worker's last heartbeat."""
    ends: int
    """Number of terminal writes: 0 or 1. Kept so that the promise can be checked."""
    expires_at: float | None
    """When the record of an ended job expires."""
    metadata: dict[str, Any] | None
    tags: list[str]
    webhook: str | None
    webhook_events: tuple[str, ...]
    files: dict[str, str]
    blob: str | None
    """Name of the request in the blob store, if it is there."""
    result_blob: str | None
    """Name of the result in the blob store, if it is there."""
    result_ttl_s: float | None
    """As the caller asked; None for the time of the setting."""

    @property
    def result(self) -> Any:
        return None if self.result_json is None else json.loads(self.result_json)

    @classmethod
    def from_hash(cls, job_id: str, fields: Mapping[bytes, bytes], result: bytes | None) -> JobRecord:
        text = {name.decode(): value.decode() for name, value in fields.items() if name != b"result"}
        return cls(
            id=job_id,
            task=text["task"],
            model=text["model"],
            batched=text["batched"] == "1",
            lane=text["lane"],
            caller=text["caller"],
            status=Status(text["status"]),
            items=int(text["items"]),
            deliveries=int(text["deliveries"]),
            created_at=int(text["created_ms"]) / 1000,
            started_at=_seconds(text.get("started_ms")),
            finished_at=_seconds(text.get("finished_ms")),
            result_json=result,
            error=json.loads(text["error"]) if "error" in text else None,
            details=json.loads(text.get("details", "{}")),
            cancel_requested="cancel" in text,
            progress=JobProgress(**json.loads(text["progress"])) if "progress" in text else None,
            ends=int(text.get("ends", 0)),
            expires_at=_seconds(text.get("expires_ms")),
            metadata=json.loads(text["metadata"]) if "metadata" in text else None,
            tags=json.loads(text.get("tags", "[]")),
            webhook=text.get("hook"),
            webhook_events=tuple(filter(None, text.get("hook_events", "").split(","))),
            files=json.loads(text.get("files", "{}")),
            blob=text.get("in_blob"),
            result_blob=text.get("out_blob"),
            result_ttl_s=_seconds(text.get("ttl_ms")),
        )


def _seconds(ms: str | None) -> float | None:
    return None if ms is None else int(ms) / 1000
