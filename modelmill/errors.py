"""Every error that leaves the system: one enum of codes, one table, one exception tree.

The code is the stable part: clients branch on it, in a response and in a failed job. ``ERRORS`` alone
decides title, HTTP status and whether a retry may help; Lua scripts get their flags from it too. So no
handler chooses a status.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class ErrorCode(StrEnum):
    """The codes. Values are part of the wire and never change meaning."""

    # The request.
    INVALID_INPUT = "invalid_input"
    INVALID_MEDIA = "invalid_media"
    MEDIA_TOO_LARGE = "media_too_large"
    MEDIA_SOURCE_REFUSED = "media_source_refused"
    BODY_TOO_LARGE = "body_too_large"
    UNSUPPORTED_ENCODING = "unsupported_encoding"
    MALFORMED_REQUEST = "malformed_request"
    HEAD_TOO_LARGE = "head_too_large"
    URL_TOO_LONG = "url_too_long"
    REQUEST_TIMEOUT = "request_timeout"
    IDEMPOTENCY_CONFLICT = "idempotency_conflict"
    MEDIA_NOT_FOUND = "media_not_found"
    MEDIA_FETCH_FAILED = "media_fetch_failed"
    # The caller.
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    LANE_NOT_ALLOWED = "lane_not_allowed"
    RATE_LIMITED = "rate_limited"
    QUOTA_EXCEEDED = "quota_exceeded"
    # The things that the request names.
    NOT_FOUND = "not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    TASK_NOT_FOUND = "task_not_found"
    MODEL_NOT_FOUND = "model_not_found"
    TASK_NOT_SUPPORTED = "task_not_supported"
    JOB_NOT_FOUND = "job_not_found"
    JOB_NOT_CANCELABLE = "job_not_cancelable"
    JOB_CANCELED = "job_canceled"
    REQUEST_NOT_KEPT = "request_not_kept"
    RESULT_NOT_READY = "result_not_ready"
    NO_RESULT = "no_result"
    FILE_NOT_FOUND = "file_not_found"
    # The state of the system.
    QUEUE_FULL = "queue_full"
    STORE_FULL = "store_full"
    STORE_UNAVAILABLE = "store_unavailable"
    NO_LIVE_WORKER = "no_live_worker"
    SERVER_BUSY = "server_busy"
    INTERNAL = "internal"
    # The end of an accepted job.
    MODEL_LOAD_FAILED = "model_load_failed"
    INFERENCE_FAILED = "inference_failed"
    OUT_OF_MEMORY = "out_of_memory"
    WORKER_CRASHED = "worker_crashed"
    DELIVERY_LIMIT = "delivery_limit"
    EXPIRED = "expired"
    RESULT_TOO_LARGE = "result_too_large"
    RESULT_NOT_STORED = "result_not_stored"


@dataclass(frozen=True, slots=True)
class ErrorSpec:
    """The meaning of a code: HTTP status, a title for people, and whether a retry may help."""

    status: int
    title: str
    retryable: bool = False


ERRORS: dict[ErrorCode, ErrorSpec] = {
    ErrorCode.INVALID_INPUT: ErrorSpec(422, "The request body is not valid for this task"),
    ErrorCode.INVALID_MEDIA: ErrorSpec(422, "The image, audio or video cannot be read"),
    ErrorCode.MEDIA_TOO_LARGE: ErrorSpec(422, "The image, audio or video is too large"),
    ErrorCode.MEDIA_SOURCE_REFUSED: ErrorSpec(422, "Media from this source are not accepted"),
    ErrorCode.BODY_TOO_LARGE: ErrorSpec(413, "The request body is over the limit"),
    ErrorCode.UNSUPPORTED_ENCODING: ErrorSpec(415, "The request body has an encoding that is not taken"),
    ErrorCode.MALFORMED_REQUEST: ErrorSpec(400, "The request is not valid HTTP"),
    ErrorCode.HEAD_TOO_LARGE: ErrorSpec(431, "The head of the request is over the limit"),
    ErrorCode.URL_TOO_LONG: ErrorSpec(414, "The address of the request is too long"),
    ErrorCode.REQUEST_TIMEOUT: ErrorSpec(408, "The request arrives too slowly", retryable=True),
    ErrorCode.IDEMPOTENCY_CONFLICT: ErrorSpec(422, "The Idempotency-Key was used with another request body"),
    ErrorCode.MEDIA_NOT_FOUND: ErrorSpec(422, "No such file was uploaded"),
    ErrorCode.MEDIA_FETCH_FAILED: ErrorSpec(422, "The media could not be fetched"),
    ErrorCode.UNAUTHENTICATED: ErrorSpec(401, "A valid API key is needed"),
    ErrorCode.FORBIDDEN: ErrorSpec(403, "This is not allowed"),
    ErrorCode.LANE_NOT_ALLOWED: ErrorSpec(403, "The API key may not use this lane"),
    ErrorCode.RATE_LIMITED: ErrorSpec(429, "Too many jobs in too short a time", retryable=True),
    ErrorCode.QUOTA_EXCEEDED: ErrorSpec(429, "Too many jobs at once", retryable=True),
    ErrorCode.NOT_FOUND: ErrorSpec(404, "There is nothing at this address"),
    ErrorCode.METHOD_NOT_ALLOWED: ErrorSpec(405, "This address does not take this method"),
    ErrorCode.TASK_NOT_FOUND: ErrorSpec(404, "No such task"),
    ErrorCode.MODEL_NOT_FOUND: ErrorSpec(404, "No such model"),
    ErrorCode.TASK_NOT_SUPPORTED: ErrorSpec(404, "The model does not answer this task"),
    ErrorCode.JOB_NOT_FOUND: ErrorSpec(404, "No such job"),
    ErrorCode.JOB_NOT_CANCELABLE: ErrorSpec(409, "The job has already ended"),
    ErrorCode.JOB_CANCELED: ErrorSpec(409, "The job was canceled"),
    ErrorCode.REQUEST_NOT_KEPT: ErrorSpec(409, "The job's request is no longer kept"),
    ErrorCode.RESULT_NOT_READY: ErrorSpec(409, "The job has not ended yet", retryable=True),
    ErrorCode.NO_RESULT: ErrorSpec(409, "The job ended without a result"),
    ErrorCode.FILE_NOT_FOUND: ErrorSpec(404, "No such file"),
    ErrorCode.QUEUE_FULL: ErrorSpec(429, "The queue is full", retryable=True),
    ErrorCode.STORE_FULL: ErrorSpec(503, "The job store is nearly out of memory", retryable=True),
    ErrorCode.STORE_UNAVAILABLE: ErrorSpec(503, "The job store does not answer", retryable=True),
    ErrorCode.NO_LIVE_WORKER: ErrorSpec(503, "No live worker serves this model", retryable=True),
    ErrorCode.SERVER_BUSY: ErrorSpec(503, "The server is at its limit", retryable=True),
    ErrorCode.INTERNAL: ErrorSpec(500, "An error inside the server"),
    ErrorCode.MODEL_LOAD_FAILED: ErrorSpec(503, "The model could not be loaded", retryable=True),
    ErrorCode.INFERENCE_FAILED: ErrorSpec(500, "The model failed on this input"),
    ErrorCode.OUT_OF_MEMORY: ErrorSpec(500, "The input does not fit the device's memory", retryable=True),
    ErrorCode.WORKER_CRASHED: ErrorSpec(500, "The worker process died on this input"),
    ErrorCode.DELIVERY_LIMIT: ErrorSpec(
        500, "The job was handed out too often without ending", retryable=True
    ),
    ErrorCode.EXPIRED: ErrorSpec(504, "The job's deadline passed before it ran"),
    ErrorCode.RESULT_TOO_LARGE: ErrorSpec(500, "The job's result is over the limit"),
    ErrorCode.RESULT_NOT_STORED: ErrorSpec(503, "The job's result could not be stored", retryable=True),
}


@dataclass(frozen=True, slots=True)
class FieldError:
    """One problem with one field of a request. ``field`` is a dotted path; the value is never shown."""

    field: str
    message: str


class ModelmillError(Exception):
    """An error that callers see: a stable code and a sentence.

    The sentence says what is wrong, where, and what to do. Callers see it as it is, so it never holds
    more than a few words of the input, a path of the server or a traceback.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        fields: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fields = tuple(fields)
        self.retry_after_s = retry_after_s
        self.headers = dict(headers or {})
        """More header fields, if the error becomes a response."""

    @property
    def spec(self) -> ErrorSpec:
        return ERRORS[self.code]

    def as_data(self) -> dict[str, Any]:
        """The error in a failed job or item, ready for JSON: only text and booleans."""
        return {"code": self.code.value, "message": self.message, "retryable": self.spec.retryable}


def invalid_field(field: str, message: str) -> ModelmillError:
    """``invalid_input`` for one field of a request, by its dotted path."""
    return ModelmillError(ErrorCode.INVALID_INPUT, f"{field}: {message}", fields=[FieldError(field, message)])


class MediaError(ModelmillError):
    """Raised when an image or audio is unreadable, too large, or from a refused source."""


class ConfigError(Exception):
    """Raised at start-up, for the operator: a setting, a file or a server that cannot be used.

    The message says which file and line, or which environment variable, and what is allowed there.
    """
