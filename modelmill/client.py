"""The HTTP client: submit a job, wait for it, get the result.

It needs httpx only. Each submit carries an Idempotency-Key, so sending it again is safe.
"""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import httpx

from modelmill.errors import ErrorCode, FieldError, ModelmillError

DEFAULT_URL = "http://127.0.0.1:8000"
TERMINAL = frozenset({"complete", "failed", "canceled"})
ASK_WAIT_S = 20
"""What one request asks the server to wait; short enough for the proxies in between."""


class Client:
    """A connection to one Modelmill server.

    Args:
        url: Where the API answers.
        timeout_s: For one request, not for a job.
    """

    def __init__(self, url: str = DEFAULT_URL, *, timeout_s: float = 30.0) -> None:
        # Connecting is retried by the transport; what was sent is not, that is the caller's choice.
        self._timeout_s = timeout_s
        self._http = httpx.Client(base_url=url, timeout=timeout_s, transport=httpx.HTTPTransport(retries=2))

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self._json("GET", "/api/tasks"))

    def models(self, task: str | None = None) -> list[str]:
        """Names of the models, or of those that answer ``task``."""
        return list(self._json("GET", f"/api/tasks/{task}/models" if task else "/api/models"))

    def model_tasks(self, model: str) -> list[str]:
        """Names of the tasks that ``model`` answers."""
        return list(self._json("GET", f"/api/models/{model}/tasks"))

    def model_status(self, model: str) -> dict[str, Any]:
        """Where ``model`` stands on the workers that serve it."""
        return dict(self._json("GET", f"/api/models/{model}/status"))

    def ready(self) -> dict[str, Any]:
        """The readiness document; its ``models`` counts live workers by model."""
        return dict(self._json("GET", "/health/ready"))

    def submit(
        self,
        task: str,
        model: str,
        inputs: Mapping[str, Any],
        *,
        batched: bool = False,
        idempotency_key: str | None = None,
    ) -> str:
        """Submits a job and returns its id.

        Args:
            task: Name of the task.
            model: Name of the model.
            inputs: The task's fields; of a batched job, its batched fields are lists.
            batched: Whether it is a batched job.
            idempotency_key: Sending again with the same key gives the same job.

        Raises:
            ModelmillError: the server refused it; ``code`` says why.
        """
        part = "batched/" if batched else ""
        answer = self._json(
            "POST",
            f"/api/tasks/{task}/{part}{model}/jobs",
            json=dict(inputs),
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
        )
        return str(answer["id"])

    def job(self, job_id: str) -> dict[str, Any]:
        """The job's document."""
        return dict(self._json("GET", f"/api/jobs/{job_id}"))

    def wait(self, job_id: str, *, timeout_s: float | None = None) -> dict[str, Any]:
        """Waits until the job has ended, and returns its document, whatever its end.

        The server is asked to answer at the job's end (``Prefer: wait``); where that is not honoured,
        the job is polled.

        Raises:
            TimeoutError: it has not ended after ``timeout_s``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        pause_s = 0.01
        while True:
            asked_at = time.monotonic()
            left_s = ASK_WAIT_S if deadline is None else max(0, int(min(deadline - asked_at, ASK_WAIT_S)))
            document = self._json(
                "GET",
                f"/api/jobs/{job_id}",
                headers={"Prefer": f"wait={left_s}"} if left_s else {},
                timeout=httpx.Timeout(self._timeout_s, read=self._timeout_s + left_s),
            )
            if document["status"] in TERMINAL:
                return dict(document)
            now = time.monotonic()
            if deadline is not None and now > deadline:
                raise TimeoutError(f"job {job_id} is still {document['status']} after {timeout_s} s")
            # Answered early: a server that does not wait, or that is about to stop.
            if now - asked_at < left_s / 2 or not left_s:
                time.sleep(pause_s)
                pause_s = min(pause_s * 1.5, 1.0)

    def run(self, task: str, model: str, inputs: Mapping[str, Any], *, timeout_s: float | None = None) -> Any:
        """Submits a job, waits, and returns its result.

        Raises:
            ModelmillError: it was refused, or it failed.
            TimeoutError: it has not ended after ``timeout_s``.
        """
        document = self.wait(self.submit(task, model, inputs), timeout_s=timeout_s)
        if document["status"] != "complete":
            error = document.get("error") or {
                "code": "internal",
                "message": f"The job was {document['status']}.",
            }
            raise ModelmillError(_code(error["code"]), error["message"])
        return document["result"]

    def _json(self, method: str, path: str, **arguments: Any) -> Any:
        try:
            response = self._http.request(method, path, **arguments)
        except httpx.TransportError as error:
            raise ModelmillError(
                ErrorCode.STORE_UNAVAILABLE,
                f"{self._http.base_url} does not answer ({error}). Start a server with: modelmill up",
            ) from error
        if response.is_success:
            try:
                return response.json()
            except ValueError:
                raise _foreign(response) from None
        raise _problem(response)


def data_url(path: Path) -> str:
    """A file as a data URL. The server looks at the bytes, so the media type is only a courtesy."""
    return f"data:application/octet-stream;base64,{base64.b64encode(path.read_bytes()).decode()}"


def _problem(response: httpx.Response) -> ModelmillError:
    try:
        body = response.json()
        fields = [FieldError(item["field"], item["message"]) for item in body.get("errors") or ()]
        wait = response.headers.get("Retry-After", "")
        return ModelmillError(
            _code(body["code"]),
            body["detail"],
            fields=fields,
            retry_after_s=float(wait) if wait.isdecimal() else None,
        )
    except (AttributeError, ValueError, KeyError, TypeError):
        return _foreign(response)


def _foreign(response: httpx.Response) -> ModelmillError:
    """Not our server answered, or a proxy in between."""
    return ModelmillError(
        ErrorCode.INTERNAL,
        f"{response.request.url} answered {response.status_code} {response.reason_phrase}, "
        "and not as a Modelmill server does",
    )


def _code(code: str) -> ErrorCode:
    try:
        return ErrorCode(code)
    except ValueError:
        return ErrorCode.INTERNAL
