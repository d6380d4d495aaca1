"""The log of ends that no worker brought about. Those that one did stand in its own log."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from modelmill.store.records import UnreportedEnd

logger = logging.getLogger("modelmill.store")


def log_ends(ends: Iterable[UnreportedEnd]) -> None:
    """One line a job's end, as key=value pairs: the first ones of those that a worker logs."""
    for end in ends:
        pairs = {
            "id": end.id,
            "task": end.task,
            "model": end.model,
            "status": end.status.value,
            "code": end.code,
            "deliveries": end.deliveries,
        }
        logger.info("%s", end_line(pairs))


def end_line(pairs: Mapping[str, object]) -> str:
    """The line of a job's end, whoever brought it about; without what is None."""
    return " ".join(["job_end", *(f"{key}={value}" for key, value in pairs.items() if value is not None)])
