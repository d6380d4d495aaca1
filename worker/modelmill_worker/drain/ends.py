"""The ends of claimed jobs: reported when they are written, and replaced when a result cannot be written."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import Status
from modelmill.store import Claimed, Outcome, Settlement
from modelmill.store.end_log import format_end
from modelmill_worker import metrics

logger = logging.getLogger(__name__)

OF_A_RESULT = frozenset({"warnings", "failed_items"})
"""Details that a job shows only together with its result."""


def report_end(outcome: Outcome, claimed: Claimed, model: str, settlement: Settlement) -> None:
    """Logs one line for a job's end, as key=value pairs, and counts it if it was written now."""
    timings = outcome.details.get("timings", {})
    pairs = {
        "id": outcome.id,
        "task": claimed.task,
        "model": model,
        "status": outcome.status.value,
        "code": (outcome.error or {}).get("code"),
        "settled": settlement.value,
        "deliveries": claimed.deliveries,
        "batch_size": outcome.details.get("batch_size"),
        **timings,
    }
    level = logging.INFO if settlement is Settlement.OK else logging.WARNING
    logger.log(level, "%s", format_end(pairs))
    if settlement is Settlement.OK:
        metrics.job_ended(claimed.task, model, outcome.status.value, claimed.queued_s)


def failed(outcome: Outcome, claimed: Claimed, error: ModelmillError) -> Outcome:
    """The end of a job whose result is given up. It is small."""
    data = error.as_data() | {"deliveries": claimed.deliveries}
    return _without_result(outcome, Status.FAILED, data)


def canceled(outcome: Outcome) -> Outcome:
    """The end of a job that was canceled while its result waited to be written."""
    return _without_result(outcome, Status.CANCELED, None)


def _without_result(outcome: Outcome, status: Status, error: dict[str, Any] | None) -> Outcome:
    details = {name: value for name, value in outcome.details.items() if name not in OF_A_RESULT}
    return replace(outcome, status=status, result=None, error=error, details=details)


def too_large(limit_bytes: int) -> ModelmillError:
    """The error of a job whose result is over a limit."""
    return ModelmillError(
        ErrorCode.RESULT_TOO_LARGE,
        f"The result is larger than {limit_bytes} bytes, which is the limit of this server. "
        "Send less in one job, or fewer items.",
    )


def too_large_for_redis() -> ModelmillError:
    """The error of a job whose result is longer than the longest value of Redis."""
    return ModelmillError(
        ErrorCode.RESULT_TOO_LARGE,
        "The result is larger than the longest value that the job store takes. "
        "Send less in one job, or fewer items.",
    )


def not_stored(why: str) -> ModelmillError:
    """The error of a job whose result could not be written within the limits."""
    return ModelmillError(
        ErrorCode.RESULT_NOT_STORED,
        f"The model answered, but the result could not be stored: {why}. Run the job again later.",
    )
