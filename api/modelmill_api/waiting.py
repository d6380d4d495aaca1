"""``Prefer: wait=n`` (RFC 7240): an answer the moment the job ends, instead of polling."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Annotated, Any

from fastapi import Header, Request
from starlette.types import Receive

from modelmill.store import JobRecord
from modelmill_api.state import ApiState

MAX_WAIT_S = 60
MOMENT_S = 0.25

Prefer = Annotated[
    list[str] | None,
    Header(
        description=f"`wait=n`: answer when the job has ended, after n seconds at most (cap {MAX_WAIT_S}). "
        "Other preferences are ignored (RFC 7240).",
        examples=[["wait=10"]],
    ),
]

_TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"  # noqa: S105
_VALUE = rf'(?:{_TOKEN}|"(?:[^"\\]|\\.)*")?'
_PREFERENCE = re.compile(
    rf"[ \t]*({_TOKEN})(?:[ \t]*=[ \t]*({_VALUE}))?"
    rf"(?:[ \t]*;[ \t]*(?:{_TOKEN}(?:[ \t]*=[ \t]*{_VALUE})?)?)*[ \t]*(?:,|$)"
)


def preferred_wait(headers: Sequence[str] | None) -> int | None:
    """The seconds that ``Prefer`` asks to wait, up to the cap; None when it does not, or not understandably.

    RFC 7240, section 2: names in any case, values also quoted, and of a preference that is repeated
    the first one counts.
    """
    for header in headers or ():
        at = 0
        while at < len(header):
            match = _PREFERENCE.match(header, at)
            if match is None:
                # An empty element of the list, or something malformed: on to what follows the comma.
                at = header.find(",", at) + 1 or len(header)
                continue
            at = match.end()
            if match[1].lower() == "wait":
                seconds = (match[2] or "").strip('"')
                return min(int(seconds[:9]), MAX_WAIT_S) if re.fullmatch("[0-9]+", seconds) else None
    return None


async def read_at_end(
    request: Request, state: ApiState, job_id: str, wait_s: int, read: Callable[[], Awaitable[JobRecord]]
) -> JobRecord:
    """The job as soon as it has ended, or as it is after ``wait_s``, or when the API is about to stop."""
    # First on the list, then the record: an end in between is seen by one or the other.
    with state.news.until_end(job_id) as ended:
        record = await read()
        if record.status.is_terminal or wait_s == 0:
            return record
        if not await wait_for_end(request, ended, wait_s):
            return record  # nobody is there to read it
    return await read()


async def wait_for_end(request: Request, ended: asyncio.Future[None], wait_s: int) -> bool:
    """Waits until the job has ended, for ``wait_s`` at most; whether the client is still there then."""
    # Time spent here is the caller's wish and no latency of ours.
    request.scope["modelmill.waited"] = True
    # Most are over in a moment, and then nobody need listen whether the client hangs up.
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


@contextmanager
def on_stop_signal(act: Callable[[], None]) -> Iterator[None]:
    """Runs ``act`` in the event loop when the process is told to end.

    A server like uvicorn waits for open requests first and tells the application after, which is too late
    for requests that wait themselves.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    previous: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)
        previous[number](number, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        # Where nobody handles the signal, it ends the process, and so it shall.
        if callable(handler):
            previous[number] = handler
            signal.signal(number, handle)
    try:
        yield
    finally:
        for caught, before in previous.items():
            signal.signal(caught, before)
