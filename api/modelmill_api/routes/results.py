"""A job's result alone, and the images and sounds in it as files."""

from __future__ import annotations

import binascii
import json
import re
from dataclasses import dataclass
from typing import Any

import pybase64
from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import Status
from modelmill.store import JobRecord
from modelmill_api.body import INLINE_PARSE_BYTES
from modelmill_api.callers import caller_of
from modelmill_api.lookup import get_job
from modelmill_api.parameters import Prefer
from modelmill_api.problems import describe_problems
from modelmill_api.state import State
from modelmill_api.waiting import read_as_preferred

router = APIRouter(tags=["jobs"])

SUFFIXES = {
    "image/png": ".png",
    "image/jpeg": ".jpg",
    "image/webp": ".webp",
    "image/gif": ".gif",
    "audio/wav": ".wav",
    "audio/mpeg": ".mp3",
    "audio/ogg": ".ogg",
    "audio/flac": ".flac",
}
"""Media types of downloads. Any other type, which a browser might run, is sent as plain bytes."""
BYTES = "application/octet-stream"

_PROBLEMS = (
    ErrorCode.JOB_NOT_FOUND,
    ErrorCode.RESULT_NOT_READY,
    ErrorCode.NO_RESULT,
    ErrorCode.STORE_UNAVAILABLE,
)
_BINARY = {"schema": {"type": "string", "format": "binary"}}


@router.get(
    "/api/jobs/{id}/result",
    summary="Read a job's result alone",
    response_class=Response,
    responses={
        **describe_problems(*_PROBLEMS),
        200: {"description": "The result", "content": {"application/json": {"schema": {}}}},
    },
)
async def read_result(id: str, request: Request, state: State, prefer: Prefer = None) -> Response:
    result, headers = await _result(id, request, state, prefer)
    return Response(result, media_type="application/json", headers=headers)


@router.get(
    "/api/jobs/{id}/result/{path:path}",
    summary="Read a part of a job's result",
    description="The path is made of keys and indices, such as `images/0`. An image or a sound, which is a "
    "data URL in the result, comes as a file. All other parts come as JSON.",
    response_class=Response,
    responses={
        **describe_problems(*_PROBLEMS, ErrorCode.NOT_FOUND),
        200: {
            "description": "The part",
            "content": {
                "application/json": {"schema": {}},
                **dict.fromkeys((*SUFFIXES, BYTES), _BINARY),
            },
        },
    },
)
async def read_result_part(
    id: str, path: str, request: Request, state: State, prefer: Prefer = None
) -> Response:
    result, headers = await _result(id, request, state, prefer)
    part = (
        _part(result, path)
        if len(result) <= INLINE_PARSE_BYTES
        else await run_in_threadpool(_part, result, path)
    )
    return Response(part.content, media_type=part.media_type, headers=headers | part.headers)


async def _result(
    job_id: str, request: Request, state: State, prefer: list[str] | None
) -> tuple[bytes, dict[str, str]]:
    caller = caller_of(request)
    record, headers = await read_as_preferred(
        request, state, job_id, prefer, lambda: get_job(state, caller, job_id)
    )
    if record.status is Status.COMPLETE and record.result_json is not None:
        return record.result_json, headers
    raise _no_result(record)


def _no_result(record: JobRecord) -> ModelmillError:
    if not record.status.is_terminal:
        return ModelmillError(
            ErrorCode.RESULT_NOT_READY,
            f"The job is {record.status.value}; it has a result when it is complete.",
            retry_after_s=1,
        )
    why = f": {record.error['message']}" if record.error else "."
    return ModelmillError(ErrorCode.NO_RESULT, f"The job is {record.status.value}{why}")


@dataclass(frozen=True, slots=True)
class _Part:
    content: bytes
    media_type: str
    headers: dict[str, str]


def _part(result: bytes, path: str) -> _Part:
    """The part of a result at ``path``.

    Raises:
        ModelmillError: ``not_found``.
    """
    value = json.loads(result)
    for step in path.split("/"):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and re.fullmatch("[0-9]{1,9}", step) and int(step) < len(value):
            value = value[int(step)]
        else:
            raise ModelmillError(ErrorCode.NOT_FOUND, "The job's result has no such part.")
    return _file(value, path) or _Part(
        json.dumps(value, separators=(",", ":")).encode(), "application/json", {}
    )


def _file(value: Any, path: str) -> _Part | None:
    """A data URL's content as a file; None for any other value."""
    if not isinstance(value, str) or not value.startswith("data:"):
        return None
    head, comma, data = value.partition(",")
    media_type, *parameters = head.removeprefix("data:").lower().split(";")
    if not comma or parameters[-1:] != ["base64"]:
        return None
    try:
        content = pybase64.b64decode(data, validate=True)
    except (binascii.Error, ValueError):
        return None
    name = re.sub("[^A-Za-z0-9_-]+", "-", path).strip("-")[:80] or "result"
    return _Part(
        content,
        media_type if media_type in SUFFIXES else BYTES,
        {"Content-Disposition": f'attachment; filename="{name}{SUFFIXES.get(media_type, ".bin")}"'},
    )
