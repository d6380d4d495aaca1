"""The ends of many jobs in one request, for clients that wait for many."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import ValidationError

from modelmill.errors import ErrorCode, FieldError, ModelmillError
from modelmill.states import Status
from modelmill_api.body import json_text, read_body
from modelmill_api.callers import caller_of
from modelmill_api.lookup import no_such_job
from modelmill_api.openapi.document import COLLECT
from modelmill_api.parameters import Prefer
from modelmill_api.problems import BODY_PROBLEMS, describe_problems
from modelmill_api.responses import job_json
from modelmill_api.room import Place
from modelmill_api.routes.bulk import MEDIA_TYPE
from modelmill_api.schemas import CollectInput
from modelmill_api.state import ApiState, State
from modelmill_api.waiting import applied_wait, preferred_wait, wait_for_end

router = APIRouter(tags=["jobs"])

MAX_BODY_BYTES = 64 * 1024
CHUNK_BYTES = 64 * 1024
"""Small documents are sent together, in chunks of this size."""
DELETED_AT_ONCE = 100
"""Ids that one script deletes. Redis serves no other client meanwhile."""


@router.post(
    "/api/jobs:collect",
    summary="Read many jobs that have ended",
    description="One line of JSON, the whole document, for each of the jobs that has ended. The answer comes "
    "as soon as at least one has ended, or when the time of `Prefer: wait` is over. If a job does not exist, "
    "its line has `status` null and an `error`.",
    response_class=Response,
    responses=describe_problems(ErrorCode.INVALID_INPUT, *BODY_PROBLEMS, ErrorCode.STORE_UNAVAILABLE),
    openapi_extra=COLLECT,
)
async def collect(request: Request, state: State, prefer: Prefer = None) -> Response:
    with Place(state.room) as place:
        body = await read_body(request, min(MAX_BODY_BYTES, state.settings.max_body_bytes), place)
        wanted = _parse(json_text(body))
    caller, ids = caller_of(request).id, list(dict.fromkeys(wanted.ids))
    if wanted.delete:
        return JSONResponse({"deleted": await _delete(state, caller, ids)})
    wait_s = preferred_wait(prefer)
    headers = {"Vary": "Prefer", **({} if wait_s is None else applied_wait(wait_s))}
    # First subscribe, then read: one of the two sees an end in between.
    with state.news.until_first_end(ids) as ended:
        statuses = await state.store.listing.statuses(caller, ids)
        if wait_s and not any(_is_news(status) for status in statuses.values()):
            await wait_for_end(request, ended, wait_s)
            statuses = await state.store.listing.statuses(caller, ids)
    return StreamingResponse(_lines(state, statuses), headers=headers, media_type=MEDIA_TYPE)


def _is_news(status: Status | None) -> bool:
    return status is None or status.is_terminal


async def _lines(state: ApiState, statuses: Mapping[str, Status | None]) -> AsyncIterator[bytes]:
    missing = [job_id for job_id, status in statuses.items() if status is None]
    ended = [job_id for job_id, status in statuses.items() if status is not None and status.is_terminal]
    error = no_such_job(state).as_data()
    if missing:
        yield b"".join(
            json.dumps({"id": job_id, "status": None, "error": error}, separators=(",", ":")).encode() + b"\n"
            for job_id in missing
        )
    lines = bytearray()
    async for record in state.store.listing.read(ended):
        # JSON has line breaks only between its parts, where a space means the same.
        lines += job_json(record, {}).replace(b"\n", b" ") + b"\n"
        if len(lines) >= CHUNK_BYTES:
            yield bytes(lines)
            lines.clear()
    if lines:
        yield bytes(lines)


async def _delete(state: ApiState, caller: str, ids: Sequence[str]) -> int:
    statuses = await state.store.listing.statuses(caller, ids)
    own = [job_id for job_id, status in statuses.items() if status is not None]
    count = 0
    for start in range(0, len(own), DELETED_AT_ONCE):
        verdicts = await state.store.delete(own[start : start + DELETED_AT_ONCE])
        count += sum(verdict != "missing" for verdict in verdicts)
    return count


def _parse(body: bytes) -> CollectInput:
    try:
        return CollectInput.model_validate_json(body)
    except ValidationError as error:
        fields = [
            FieldError(".".join(map(str, item["loc"]))[:200] or "body", item["msg"])
            for item in error.errors(include_input=False, include_url=False)[:20]
        ]
        message = f"{fields[0].field}: {fields[0].message}"
        raise ModelmillError(ErrorCode.INVALID_INPUT, message, fields=fields) from None
