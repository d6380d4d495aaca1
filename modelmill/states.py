"""The words for where a job is and how urgent it is. They are part of the wire."""

from __future__ import annotations

from enum import StrEnum


class Status(StrEnum):
    """Where a job is. The last three are terminal: a job reaches exactly one of them, once."""

    STARTING = "starting"
    """Accepted, and waiting in the queue (also again, after a worker was lost)."""
    RUNNING = "running"
    """A worker holds its lease."""
    COMPLETE = "complete"
    FAILED = "failed"
    CANCELED = "canceled"

    @property
    def is_terminal(self) -> bool:
        return self in (Status.COMPLETE, Status.FAILED, Status.CANCELED)


class Lane(StrEnum):
    """How urgent a job is. Within a lane, jobs run in the order they came."""

    INTERACTIVE = "interactive"
    """Somebody is waiting: before everything else."""
    NORMAL = "normal"
    BULK = "bulk"
    """Backfills: after the others."""
