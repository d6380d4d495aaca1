"""Makes a job's document of its record."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from fastapi import Response

from modelmill.states import Status
from modelmill.store import JobRecord


def job_response(
    record: JobRecord, more: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Response:
    """The response with a job's document.

    Args:
        record: The job.
        more: Further fields, for a job that has not ended (see ``eta``).
        headers: Further headers.
    """
    body = job_json(record, more)
    # A hint for clients that poll: soon, but not at once.
    hint = {} if record.status.is_terminal else {"Retry-After": "1"}
    return Response(body, media_type="application/json", headers={**hint, **(headers or {})})


def job_json(record: JobRecord, more: Mapping[str, Any]) -> bytes:
    """The document of a job with its result. The result's bytes are as the worker wrote them, not parsed."""
    body = json.dumps(job_document(record, more), separators=(",", ":")).encode()
    if record.status is Status.COMPLETE and record.result_json is not None:
        body = body[:-1] + b',"result":' + record.result_json + b"}"
    return body


def job_document(record: JobRecord, more: Mapping[str, Any]) -> dict[str, Any]:
    """The document of a job, without its result."""
    document: dict[str, Any] = {
        "id": record.id,
        "status": record.status.value,
        "task": record.task,
        "model": record.model,
        "lane": record.lane,
        "created_at": _iso(record.created_at),
        "started_at": _iso(record.started_at),
        "finished_at": _iso(record.finished_at),
        "deliveries": record.deliveries,
        **({"items": record.items} if record.batched else {}),
        **({"metadata": record.metadata} if record.metadata is not None else {}),
        **({"tags": record.tags} if record.tags else {}),
        **({"expires_at": _iso(record.expires_at)} if record.expires_at is not None else {}),
        **record.details,
        **more,
    }
    if record.status is Status.FAILED:
        document["error"] = record.error
    return document


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
