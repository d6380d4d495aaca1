"""The errors of jobs that the store did not accept."""

from __future__ import annotations

from collections.abc import Mapping

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.store import Limits, SubmitReply, Verdict
from modelmill_api.callers import rate_limit_fields


def refusal(
    reply: SubmitReply, settings: Settings, limits: Limits, *, model: str = "", files: Mapping[str, str]
) -> ModelmillError:
    """The error for a submit that the store refused.

    Args:
        reply: The store's reply.
        settings: The API's, whose limits the message names.
        limits: The caller's.
        model: The job's model.
        files: Texts of the request → ids of the files that they name.
    """
    if reply.verdict is Verdict.CONFLICT:
        return ModelmillError(
            ErrorCode.IDEMPOTENCY_CONFLICT,
            "This Idempotency-Key was used for another request. "
            "Use a new key, or send the very same request.",
        )
    if reply.verdict is Verdict.FILE_MISSING:
        named = next((name for name, file in files.items() if file == reply.id), reply.id)
        return ModelmillError(
            ErrorCode.MEDIA_NOT_FOUND,
            f"There is no file {named[:100]!r}, or it has expired: upload it again.",
        )
    code, reason = _reason(reply.verdict, settings, limits, model)
    # For other refusals, `remaining` already counts this job.
    left = reply.remaining if reply.verdict is Verdict.RATE_LIMITED else None
    return ModelmillError(
        code,
        f"{reason} Nothing was accepted; try again later.",
        retry_after_s=reply.retry_after_s,
        headers=rate_limit_fields(limits, left, reply.retry_after_s),
    )


def _reason(verdict: Verdict, settings: Settings, limits: Limits, model: str) -> tuple[ErrorCode, str]:
    if verdict is Verdict.QUEUE_FULL:
        return ErrorCode.QUEUE_FULL, f"{settings.max_queue_depth} jobs wait for {model!r} already."
    if verdict is Verdict.BYTES_FULL:
        return ErrorCode.QUEUE_FULL, f"The waiting jobs hold {settings.max_queued_bytes} bytes already."
    if verdict is Verdict.STORE_FULL:
        return ErrorCode.STORE_FULL, "The job store is nearly out of memory."
    if verdict is Verdict.PAYLOAD_MISSING:
        return ErrorCode.STORE_UNAVAILABLE, "The job store lost the request."
    if verdict is Verdict.QUOTA_FULL:
        message = f"{limits.max_jobs} jobs of this API key have not ended, which is as many as it may have."
        return ErrorCode.QUOTA_EXCEEDED, message
    if verdict is Verdict.RATE_LIMITED:
        return ErrorCode.RATE_LIMITED, f"This API key may submit {limits.jobs_per_minute:g} jobs a minute."
    raise AssertionError(verdict)
