"""What the client raises. All are ``ModelmillError``, with the server's stable ``code``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx

from modelmill.errors import ErrorCode, FieldError, ModelmillError


class ApiError(ModelmillError):
    """Base of all that the client raises.

    Attributes:
        code: What went wrong, for programs; ``internal`` for a code that this client does not know.
        message: The same for people.
        fields: Which fields of the request are wrong.
        retry_after_s: When to come back, if the server said so.
        status: HTTP status of the answer; None where there was none, as of a job that failed.
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
    """The request cannot be done as it is (400, 409, 413, 422): sending it again does not help."""


class AuthenticationError(ApiError):
    """No API key, or not a valid one (401)."""


class PermissionDeniedError(ApiError):
    """The API key may not do this (403)."""


class NotFoundError(ApiError):
    """No such task, model, job or file, or it is somebody else's (404)."""


class RateLimitError(ApiError):
    """Too much at once (429): the queue is full, or the key's rate or quota is used up."""


class ServerError(ApiError):
    """The server, or a proxy before it, could not answer (5xx)."""


class ConnectionFailedError(ApiError):
    """Nobody answered, or the answer broke off."""


class JobNotFinishedError(ApiError):
    """The result was asked for, and is not there yet."""


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
    """The job failed; ``code`` and ``message`` are those of its ``error``, ``document`` is all of it."""


class JobCanceledError(_EndedJobError):
    """The job was canceled."""


class JobTimeoutError(TimeoutError):
    """A job has not ended in the time that was given. It goes on; ``job_id`` finds it again."""

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
    """The error that an answer, read to its end, tells of."""
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
    """Not our server answered, or a proxy in between."""
    return _kind(response.status_code)(
        ErrorCode.INTERNAL,
        f"{_shown(response.request.url)} answered {response.status_code} {response.reason_phrase}, "
        "and not as a Modelmill server does",
        retry_after_s=retry_after_s(response),
        status=response.status_code,
    )


def refused_line(error: Mapping[str, Any]) -> ApiError:
    """The error of one line of a bulk submit."""
    code = known_code(error.get("code"))
    wait = error.get("retry_after_s")
    return _kind(ModelmillError(code, "").spec.status)(
        code,
        str(error.get("message", "The server refused it.")),
        retry_after_s=float(wait) if isinstance(wait, int | float) else None,
    )


def unreachable(url: httpx.URL, error: httpx.TransportError) -> ConnectionFailedError:
    reason = str(error) or type(error).__name__
    return ConnectionFailedError(
        ErrorCode.STORE_UNAVAILABLE,
        f"{_shown(url)} does not answer ({reason}). Start a server with: modelmill up",
    )


def ended_badly(document: Mapping[str, Any]) -> ApiError:
    """The error of a job that failed or was canceled."""
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


def _shown(url: httpx.URL) -> str:
    """An address without what is secret in it."""
    return f"{url.scheme}://{url.netloc.decode()}{url.path}"


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
