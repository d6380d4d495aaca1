"""Request bodies: read within their limit, and parsed once."""

from __future__ import annotations

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from modelmill.errors import ErrorCode, ModelmillError, invalid_field
from modelmill.formats.encodings import mark_of
from modelmill_api.encodings import decoded
from modelmill_api.room import Place
from modelmill_tasks.contract import Task, TaskInput
from modelmill_tasks.limits import MediaLimits
from modelmill_tasks.shared.sources import WantedSources

INLINE_PARSE_BYTES = 256 * 1024
"""Larger bodies are parsed in a thread, so that other requests do not wait for them."""


async def read_body(request: Request, limit_bytes: int, place: Place) -> bytes:
    """The body, without its ``Content-Encoding``. Reads no more than the limit.

    Args:
        request: Its body is read.
        limit_bytes: The largest body, as it came and decoded.
        place: Takes the room that the body needs.

    Raises:
        ModelmillError: ``body_too_large``, as soon as the size is known; ``server_busy``;
            ``unsupported_encoding``.
    """
    declared = declared_length(request)
    if declared > limit_bytes:
        raise too_large(limit_bytes)
    size, room = 0, declared
    if not place.takes(room):
        await place.resize(room)
    chunks: list[bytes] = []
    async for chunk in decoded(request):
        size += len(chunk)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        if size > room:
            # The client has not said how much comes.
            room = min(limit_bytes, 2 * size)
            await place.resize(room)
        chunks.append(chunk)
    place.shrink(size)
    return b"".join(chunks)


def declared_length(request: Request) -> int:
    """The body's size by ``Content-Length``; 0 if it does not say."""
    declared = request.headers.get("content-length", "")
    return int(declared) if declared.isdecimal() and len(declared) < 20 else 0


def json_text(body: bytes) -> bytes:
    """A body or a line of JSON, without the mark at its beginning that some editors write.

    Raises:
        ModelmillError: ``invalid_input``: the text is not UTF-8, or compressed.
    """
    if body[:1] == b"{" and b"\0" not in body[:4]:
        # Nearly all bodies.
        return body
    mark, encoding = mark_of(body)
    if encoding == "utf-8":
        return body[len(mark) :]
    if body[:2] == b"\x1f\x8b":
        raise invalid_field("body", "is gzip data. Say so, with the header Content-Encoding: gzip.")
    if mark or b"\0" in body[:4]:
        raise invalid_field("body", "is UTF-16 or UTF-32. JSON is UTF-8: encode it as that.")
    return body


async def parse_body(
    task: Task, body: bytes, batched: bool, sources: WantedSources, limits: MediaLimits
) -> TaskInput:
    """The validated request.

    Args:
        task: The task, as the model answers it.
        body: The request's body.
        batched: Whether it is the body of a batched job.
        sources: Takes the media that the request names and does not hold.
        limits: Apply to media that the request holds.

    Raises:
        ModelmillError: names the fields that are wrong.
    """
    if len(body) <= INLINE_PARSE_BYTES:
        return task.parse(body, batched=batched, sources=sources, limits=limits)
    return await run_in_threadpool(task.parse, body, batched=batched, sources=sources, limits=limits)


def too_large(limit_bytes: int) -> ModelmillError:
    """``body_too_large``."""
    return ModelmillError(
        ErrorCode.BODY_TOO_LARGE,
        f"The request body is over the limit of {limit_bytes} bytes. "
        "Send smaller media, or fewer items a job.",
    )
