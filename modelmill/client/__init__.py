"""The HTTP client: submit jobs, wait for them, get the results.

It needs httpx and httpx-sse only. Each submit carries an Idempotency-Key. So the client can safely send it
again, and does so if that can help.
"""

from modelmill.client.aio import AsyncClient
from modelmill.client.errors import (
    ApiError,
    AuthenticationError,
    ConnectionFailedError,
    InvalidRequestError,
    JobCanceledError,
    JobFailedError,
    JobNotFinishedError,
    JobTimeoutError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
)
from modelmill.client.events import Event
from modelmill.client.flows import TERMINAL
from modelmill.client.jobs import AsyncJob, Job
from modelmill.client.media import File, data_url
from modelmill.client.sync import Client
from modelmill.client.wire import DEFAULT_URL
from modelmill.errors import ModelmillError

__all__ = [
    "DEFAULT_URL",
    "TERMINAL",
    "ApiError",
    "AsyncClient",
    "AsyncJob",
    "AuthenticationError",
    "Client",
    "ConnectionFailedError",
    "Event",
    "File",
    "InvalidRequestError",
    "Job",
    "JobCanceledError",
    "JobFailedError",
    "JobNotFinishedError",
    "JobTimeoutError",
    "ModelmillError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ServerError",
    "data_url",
]
