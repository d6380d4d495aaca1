"""Request bodies: read within their limit, and parsed once."""

from __future__ import annotations

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_tasks.contract import Task, TaskInput
from modelmill_tasks.limits import MediaLimits
from modelmill_tasks.shared.sources import WantedSources

INLINE_PARSE_BYTES = 256 * 1024
"""Larger bodies are parsed in a thread, so that other requests do not wait for them."""


async def read_body(request: Request, limit_bytes: int) -> bytes:
    """The body. Reads no more than the limit.

    Raises:
        ModelmillError: ``body_too_large``, as soon as the size is known.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > limit_bytes:
        raise too_large(limit_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size > limit_bytes:
            raise too_large(limit_bytes)
        chunks.append(chunk)
    return b"".join(chunks)


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
