"""What goes into the store and comes out of it, as types."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from modelmill.states import Lane, Status

LANE_RANK: dict[Lane, int] = {Lane.INTERACTIVE: 0, Lane.NORMAL: 1, Lane.BULK: 2}


class Verdict(StrEnum):
    """What ``submit`` says."""

    ACCEPTED = "accepted"
    REPLAYED = "replayed"
    """The Idempotency-Key was seen with this very body: the id is the first job's."""
    CONFLICT = "conflict"
    """The Idempotency-Key was seen with another body."""
    QUEUE_FULL = "queue_full"
    BYTES_FULL = "bytes_full"
    STORE_FULL = "store_full"
    """The server is near its memory limit; what is left of it is for results."""
    PAYLOAD_MISSING = "payload_missing"
    """The payload written just before is not there (evicted, or the write was refused)."""
    QUOTA_FULL = "quota_full"
    """The caller has as many jobs that have not ended as it may."""
    RATE_LIMITED = "rate_limited"
    """The caller's jobs come faster than they may."""
    FILE_MISSING = "file_missing"
    """A file that the request names is not there, or belongs to somebody else."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What one caller may have; None is no limit."""

    max_jobs: int | None = None
    """Jobs that have not ended."""
    jobs_per_minute: float | None = None
    burst: int = 1
    """Jobs that may come at once, at that rate."""


@dataclass(frozen=True, slots=True)
class Submission:
    """A job to be accepted. ``body`` is the request as it came; the worker reads the same bytes."""

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
    """A bell is due again each so many waiting jobs: the model's batch size."""
    expires_in_s: float | None = None
    result_ttl_s: float | None = None
    """How long its end can be read; the setting's when None."""
    metadata: Mapping[str, Any] | None = None
    tags: Sequence[str] = ()
    webhook: str | None = None
    webhook_events: Sequence[str] = ()
    files: Mapping[str, str] = field(default_factory=dict)
    """What the body names as media, a ``file:`` id or a URL → id of the file that holds them."""
    blob: str | None = None
    """Where the body was written in the blob store; None for one that goes beside the record."""
    limits: Limits = field(default_factory=Limits)


@dataclass(frozen=True, slots=True)
class SubmitReply:
    """The answer to a submission; ``bell`` says that a worker should be woken."""

    verdict: Verdict
    id: str
    """The job's; with ``FILE_MISSING``, the file's."""
    bell: bool
    retry_after_s: float = 0.0
    remaining: int | None = None
    """Jobs that may follow at once, where the caller has a rate."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """A job under lease."""

    id: str
    fence: str
    task: str
    batched: bool
    bytes: int
    deliveries: int
    """How often it was handed out, this time included."""
    queued_s: float
    """From its acceptance to this claim."""
    suspect: bool = False
    """It was in a forward pass when its process died, and is to run alone."""
    files: Mapping[str, str] = field(default_factory=dict)
    """What the request names as media → id of the file that holds them."""
    blob: str | None = None
    """Where the request lies in the blob store; None where it lies beside the record."""


@dataclass(frozen=True, slots=True)
class ClaimReply:
    """What one claim took, and how many jobs of the model it left."""

    jobs: tuple[Claimed, ...]
    remaining: int
    lingers: bool = False
    """Nothing was there, and the node counts as idle: it is to wait to be woken."""


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a job that runs is: ``done`` of at most ``total``, in ``unit`` (``tokens``, ``steps``, …)."""

    done: int
    total: int
    unit: str


@dataclass(frozen=True, slots=True)
class Beat:
    """Answer to a heartbeat: ids that are ours no more, and ids that somebody wants canceled."""

    lost: frozenset[str]
    cancel: frozenset[str]


@dataclass(frozen=True, slots=True)
class Outcome:
    """A job's end, to be settled. ``result`` is JSON text, for ``complete`` only."""

    id: str
    fence: str
    status: Status
    result: bytes | None = None
    error: Mapping[str, Any] | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    """More for the job document: ``batch_size``, ``device``, ``timings``, …; JSON values."""


class Return(StrEnum):
    """Why a job goes back to its place in the queue unfinished."""

    RELEASED = "released"
    """In good order, uncharged: a worker leaves, or died without touching it."""
    SUSPECT = "suspect"
    """Its process died while it was in a forward pass with others: it runs alone next time."""
    CRASHED = "crashed"
    """Its process died while it, or one item of it, was in a forward pass alone, or while it was opened
    alone. The third time ends it."""


OPENING = -1
"""In place of an item's index: the whole job, while it was being opened."""


@dataclass(frozen=True, slots=True)
class Released:
    """A job given back unfinished."""

    id: str
    fence: str
    why: Return = Return.RELEASED
    item: int = 0
    """For ``crashed``: which item of a batched job it was. ``OPENING``: the process died before any of them
    ran, while it opened the job; the third time all of the job fails."""


class Settlement(StrEnum):
    """What ``settle`` says of one job."""

    OK = "ok"
    REFUSED = "refused"
    """The fence is not the lease's any more: the result is dropped, somebody else's counts."""
    MISSING = "missing"
    """The large result that was written before is gone; settle again."""
    NO_ROOM = "no_room"
    """The server is at its memory limit and took no result that large. Nothing has happened to the job: keep
    its result and its lease, and settle again."""


@dataclass(frozen=True, slots=True)
class UnreportedEnd:
    """An end that no worker brought about: a deadline, the limit of deliveries, a crash, a cancellation."""

    id: str
    task: str
    model: str
    status: Status
    code: str | None
    """Why it failed."""
    deliveries: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """What ``reap`` did, and the models whose bell it won the right to ring."""

    returned: int
    expired: int
    bells: tuple[str, ...]


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
    """The result as it was written: JSON text, passed on without a second look."""
    error: dict[str, Any] | None
    details: dict[str, Any]
    cancel_requested: bool
    progress: Progress | None
    """Of a job that takes many steps, as its worker's last heartbeat told."""
    ends: int
    """Terminal writes: 0 or 1, ever. Kept so that the promise can be checked."""
    expires_at: float | None
    """When an ended job is forgotten."""
    metadata: dict[str, Any] | None
    tags: list[str]
    webhook: str | None
    webhook_events: tuple[str, ...]
    files: dict[str, str]
    blob: str | None
    """Where the request lies in the blob store, if there."""
    result_blob: str | None
    """Where the result lies in the blob store, if there."""
    result_ttl_s: float | None
    """As the caller asked."""

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
            progress=Progress(**json.loads(text["progress"])) if "progress" in text else None,
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


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A live worker node: what its parent and its child say of themselves."""

    name: str
    parent: dict[str, Any]
    child: dict[str, Any]

    @property
    def models(self) -> Sequence[str]:
        """Names of the models that it serves, loaded or not."""
        return list(self.parent.get("models", {}))

    def state_of(self, model: str) -> dict[str, Any]:
        """``{"status": …}`` of one model in its child; empty when it was never loaded there."""
        state: dict[str, Any] = self.child.get("models", {}).get(model, {})
        return state


def node_records(names: Sequence[str], found: Sequence[Mapping[bytes, bytes]]) -> list[NodeRecord]:
    """Nodes from the hashes that they keep; those whose hash has expired are left out."""
    return [
        NodeRecord(name, json.loads(fields[b"parent"]), json.loads(fields.get(b"child", b"{}")))
        for name, fields in zip(names, found, strict=True)
        if b"parent" in fields
    ]


def _seconds(ms: str | None) -> float | None:
    return None if ms is None else int(ms) / 1000
