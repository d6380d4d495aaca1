"""``Prefer: wait=n`` (RFC 7240): the answer comes when the job ends, so that the caller need not poll."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence

from fastapi import Request
from starlette.types import Receive

from modelmill.store import JobRecord
from modelmill_api.lookup import is_uuid
from modelmill_api.middleware.metrics import leave_out_of_latency
from modelmill_api.parameters import MAX_WAIT_S
from modelmill_api.state import ApiState

MOMENT_S = 0.25
"""How long a request waits before it listens whether its client hangs up."""

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105
_QUOTED = r'"(?:[^"\\]|\\.)*+"'
# A quote that is not closed takes the rest, so that each character is read once.
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*+(?:"|\\?$)|[,;]|[^",;]+', re.DOTALL)
_PREFERENCE = re.compile(rf"({_TOKEN})(?:[ \t]*=[ \t]*({_TOKEN}|{_QUOTED})?)?")


def preferred_wait(headers: Sequence[str] | None) -> int | None:
    """The seconds that ``Prefer`` asks to wait, up to the cap; None without a wait that can be understood.

    RFC 7240, section 2: names are in any case, values may be quoted, and the first of several preferences
    with the same name counts.
    """
    for header in headers or ():
        for name, *parameters in _elements(header):
            first = _PREFERENCE.fullmatch(name)
            if first is None or first[1].lower() != "wait":
                continue
            if not all(_PREFERENCE.fullmatch(parameter) for parameter in parameters if parameter):
                continue
            seconds = (first[2] or "").strip('"')
            return min(int(seconds[:9]), MAX_WAIT_S) if re.fullmatch("[0-9]+", seconds) else None
    return None


def _elements(header: str) -> Iterator[list[str]]:
    """The elements of a list in a header, each cut at its semicolons. Those in quotes do not count."""
    parts = [""]
    for piece in _PIECE.findall(header):
        if piece == ",":
            yield [part.strip(" \t") for part in parts]
            parts = [""]
        elif piece == ";":
            parts.append("")
        else:
            parts[-1] += piece
    yield [part.strip(" \t") for part in parts]


def applied_wait(wait_s: int) -> dict[str, str]:
    """The header that says that ``Prefer: wait`` was honoured."""
    return {"Preference-Applied": f"wait={wait_s}"}


async def read_as_preferred(
    request: Request,
    state: ApiState,
    job_id: str,
    prefer: Sequence[str] | None,
    read: Callable[[], Awaitable[JobRecord]],
) -> tuple[JobRecord, dict[str, str]]:
    """The job now, or at its end if ``Prefer`` asks for that; and the headers of the answer."""
    wait_s, headers = preferred_wait(prefer), {"Vary": "Prefer"}
    if wait_s is None or not is_uuid(job_id):
        return await read(), headers
    return await read_at_end(request, state, job_id, wait_s, read), headers | applied_wait(wait_s)


async def read_at_end(
    request: Request, state: ApiState, job_id: str, wait_s: int, read: Callable[[], Awaitable[JobRecord]]
) -> JobRecord:
    """The job when it ends, or as it is after ``wait_s``, or when the API is about to stop."""
    # First subscribe, then read the record: one of the two sees an end in between.
    with state.news.until_end(job_id) as ended:
        record = await read()
        if record.status.is_terminal or wait_s == 0:
            return record
        if not await wait_for_end(request, ended, wait_s):
            return record  # the client has hung up and reads no answer
    return await read()


async def wait_for_end(request: Request, ended: asyncio.Future[None], wait_s: int) -> bool:
    """Waits until the job has ended, for ``wait_s`` at most; whether the client is still there then."""
    # The caller asked for this time; it is no latency of ours.
    leave_out_of_latency(request.scope)
    # Most jobs end in a moment. Until then it is not worth listening whether the client hangs up.
    if (await asyncio.wait((ended,), timeout=min(MOMENT_S, wait_s)))[0] or wait_s <= MOMENT_S:
        return True
    gone = asyncio.create_task(disconnect(request.receive))
    try:
        await asyncio.wait((ended, gone), timeout=wait_s - MOMENT_S, return_when=asyncio.FIRST_COMPLETED)
        return not gone.done()
    finally:
        gone.cancel()
        await asyncio.wait((gone,))


async def disconnect(receive: Receive) -> None:
    """Returns when the client hangs up."""
    while (await receive())["type"] != "http.disconnect":
        continue
