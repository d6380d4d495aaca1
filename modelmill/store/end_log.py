"""The log line of a job's end. A worker logs the ends that it reports; this package logs all others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

from modelmill.store.records import UnreportedEnd

logger = logging.getLogger("modelmill.store")


def format_end(pairs: Mapping[str, object]) -> str:
    """The line of a job's end, as key=value pairs. Pairs whose value is None are left out."""
    return " ".join(["job_end", *(f"{key}={value}" for key, value in pairs.items() if value is not None)])


def log_unreported_ends(ends: Iterable[UnreportedEnd]) -> None:
    """Logs one line for each end. Its pairs are the first pairs of a line that a worker logs."""
    for end in ends:
        pairs = {
            "id": end.id,
            "task": end.task,
            "model": end.model,
            "status": end.status.value,
            "code": end.code,
            "deliveries": end.deliveries,
        }
        logger.info("%s", format_end(pairs))
