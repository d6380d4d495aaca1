"""The words for the state of a job and of a model, and for urgency. They are part of the wire."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """The state of a job. The last three are terminal: a job reaches exactly one of them, once."""

    STARTING = "starting"
    """Accepted, and in the queue (also again, after a worker was lost)."""
    RUNNING = "running"
    """A worker has claimed it and holds its lease."""
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return self in (Status.COMPLETE, Status.FAILED, Status.CANCELED)


class ModelPhase(StrEnum):
    """The state of a model, on one node or over all nodes; the best one first."""

    RUNNING = "running"
    """Loaded."""
    LOADING = "loading"
    STARTING = "starting"
    """A caller asked to load it, and no worker has begun yet. Never on one node."""
    FAILED = "failed"
    """Loading failed."""
    STOPPED = "stopped"
    """Unloaded; its next job loads it again."""
    UNINITIALIZED = "uninitialized"
    """Never loaded."""


class Lane(StrEnum):
    """How urgent a job is. Within a lane, jobs run in the order in which they came."""

    INTERACTIVE = "interactive"
    """A person is waiting: before all others."""
    NORMAL = "normal"
    BULK = "bulk"
    """Backfills: after the others."""
