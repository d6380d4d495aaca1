"""The exceptions of the client. Each is a ``ModelmillError`` with the server's stable ``code``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx

from modelmill.errors import ErrorCode, FieldError, ModelmillError
from modelmill.http_client import proxy_for, shown


class ApiError(ModelmillError):
    """The base class of the client's exceptions.

    Attributes:
        code: What went wrong, for programs; ``internal`` for a code that this client does not know.
        message: What went wrong, for people.
        fields: The fields of the request that are wrong.
        retry_after_s: When to try again, if the server said so.
        status: HTTP status of the answer; None if the error is not an HTTP answer, such as a failed job.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        fields: Sequence[FieldError] = (),
        retry_after_s: float | None = None,
        status: int | None = None,
    ) -> None:
        super().__init__(code, message, fields=fields, retry_after_s=retry_after_s)
        self.status = status


class InvalidRequestError(ApiError):
    """The server cannot carry out this request (400, 409, 413, 422). Sending it again does not help."""


class AuthenticationError(ApiError):
    """The API key is missing or not valid (401)."""


class PermissionDeniedError(ApiError):
    """The API key may not do this (403)."""


class NotFoundError(ApiError):
    """The task, model, job or file does not exist, or belongs to another caller (404)."""


class RateLimitError(ApiError):
    """Too many jobs (429): the queue is full, or the key's rate or quota is used up."""


class ServerError(ApiError):
    """The server, or a proxy in front of it, could not answer (5xx)."""


class ConnectionFailedError(ApiError):
    """The server did not answer, or the answer broke off."""


class JobNotFinishedError(ApiError):
    """The result of the job is not available yet."""


class _EndedJobError(ApiError):
    def __init__(self, code: ErrorCode, message: str, document: Mapping[str, Any]) -> None:
        super().__init__(code, message)
        self.document = dict(document)

    @property
    def job_id(self) -> str:
        return str(self.document.get("id", ""))

    @property
    def deliveries(self) -> int:
        """How often the job was handed to a worker."""
        return int(self.document.get("deliveries") or 0)


class JobFailedError(_EndedJobError):
    """The job failed. ``code`` and ``message`` come from its ``error``; ``document`` is the job document."""


class JobCanceledError(_EndedJobError):
    """The job was canceled."""


class JobTimeoutError(TimeoutError):
    """A job has not ended in the given time. It continues; use ``job_id`` to find it again."""

    def __init__(self, job_id: str, status: str, timeout_s: float | None) -> None:
        super().__init__(f"job {job_id} is still {status} after {timeout_s} s")
        self.job_id = job_id


def known_code(code: object) -> ErrorCode:
    """The code, or ``internal`` for one that only a newer server knows."""
    try:
        return ErrorCode(str(code))
    except ValueError:
        return ErrorCode.INTERNAL


def problem(response: httpx.Response) -> ApiError:
    """The exception for an error answer. The answer must have been read to its end."""
    kind = _kind(response.status_code)
    try:
        body = response.json()
        fields = [FieldError(str(item["field"]), str(item["message"])) for item in body.get("errors") or ()]
        return kind(
            known_code(body["code"]),
            str(body["detail"]),
            fields=fields,
            retry_after_s=retry_after_s(response),
            status=response.status_code,
        )
    except (AttributeError, ValueError, KeyError, TypeError):
        return foreign(response)


def foreign(response: httpx.Response) -> ApiError:
    """The exception for an answer that does not come from a Modelmill server, but perhaps from a proxy."""
    return _kind(response.status_code)(
        ErrorCode.INTERNAL,
        f"{shown(response.request.url)} answered {response.status_code} {response.reason_phrase}, "
        "but not as a Modelmill server does",
        retry_after_s=retry_after_s(response),
        status=response.status_code,
    )


def refused_line(error: Mapping[str, Any]) -> ApiError:
    """The exception for one refused line of a bulk submit."""
    code = known_code(error.get("code"))
    wait = error.get("retry_after_s")
    return _kind(ModelmillError(code, "").spec.status)(
        code,
        str(error.get("message", "The server refused it.")),
        retry_after_s=float(wait) if isinstance(wait, int | float) else None,
    )


def unreachable(url: httpx.URL, error: httpx.TransportError) -> ConnectionFailedError:
    """The exception for a request that got no answer."""
    reason = str(error) or type(error).__name__
    proxy = proxy_for(url)
    # The path to it, since a proxy that is away looks like a server that is away.
    way = f" through the proxy that {proxy.variable} names" if proxy else ""
    return ConnectionFailedError(
        ErrorCode.STORE_UNAVAILABLE,
        f"{shown(url)} does not answer{way} ({reason}). Start a server with: modelmill up",
    )


def ended_badly(document: Mapping[str, Any]) -> ApiError:
    """The exception for a job that failed or was canceled."""
    if document["status"] == "canceled":
        message = f"The job {document.get('id')} was canceled."
        return JobCanceledError(ErrorCode.JOB_CANCELED, message, document)
    error = document.get("error") or {}
    return JobFailedError(
        known_code(error.get("code")), str(error.get("message", "The job failed.")), document
    )


def retry_after_s(response: httpx.Response) -> float | None:
    """``Retry-After`` in seconds, written as a number or as a date (RFC 9110, section 10.2.3)."""
    text = response.headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text[:9])
    try:
        return max(0.0, parsedate_to_datetime(text).timestamp() - time())
    except (ValueError, TypeError, OverflowError):
        return None


def _kind(status: int) -> type[ApiError]:
    named: dict[int, type[ApiError]] = {
        401: AuthenticationError,
        403: PermissionDeniedError,
        404: NotFoundError,
        429: RateLimitError,
    }
    if status in named:
        return named[status]
    if 400 <= status < 500:
        return InvalidRequestError
    return ServerError if status >= 500 else ApiError
