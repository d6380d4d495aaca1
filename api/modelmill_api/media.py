"""Media that a request names and does not hold.

The API looks them up, or fetches them from allowed hosts, before it accepts the job.
"""

from __future__ import annotations

import asyncio
import hashlib
import io

from starlette.concurrency import run_in_threadpool

from modelmill.errors import ErrorCode, MediaError, ModelmillError
from modelmill.hosts import Hosts, Networks
from modelmill.outbound import Guard
from modelmill.settings import Settings
from modelmill.store.files import FileRecord, NewFile
from modelmill_api.callers import Caller
from modelmill_api.state import ApiState
from modelmill_tasks.limits import MediaLimits
from modelmill_tasks.shared.sniffing import ANYTHING, sniff, unfit
from modelmill_tasks.shared.sources import FILE_SCHEME, WantedSources, is_url, refused

MAX_URLS = 64
"""URLs that one job may name."""
MAX_NAMED = 2048
"""URLs and files together."""
FETCHES = 16
"""Fetches at the same time in one process, each with up to ``max_fetch_bytes`` in memory."""
FETCHED_TTL_S = 900
"""How long fetched media are kept for a job that refers to them."""


def make_media_guard(settings: Settings) -> Guard | None:
    """The guard that fetches media; None if no host is allowed."""
    hosts = Hosts(settings.fetch_hosts, "fetch_hosts")
    return Guard(hosts, Networks(settings.private_networks), concurrency=FETCHES) if hosts else None


async def find_media(state: ApiState, caller: Caller, sources: WantedSources) -> dict[str, str]:
    """Finds the media that ``sources`` collected, and notes there which of them cannot be used.

    Returns:
        Texts of the request → id of the file that holds the media, for those that can be used.

    Raises:
        ModelmillError: the request names too many media, or the store does not answer.
    """
    names = {value for value, _ in sources.answers}
    urls = {name for name in names if is_url(name)}
    if len(urls) > MAX_URLS or len(names) > MAX_NAMED:
        raise ModelmillError(
            ErrorCode.INVALID_INPUT,
            f"A job may name {MAX_URLS} URLs, and {MAX_NAMED} media in all. Split it, or upload them.",
        )
    found: dict[str, FileRecord | MediaError] = await _find_files(state, caller, names - urls)
    fetched = await asyncio.gather(*(_fetch(state, caller, url) for url in urls), return_exceptions=True)
    for url, answer in zip(urls, fetched, strict=True):
        if isinstance(answer, BaseException) and not isinstance(answer, MediaError):
            raise answer
        found[url] = answer
    for value, kind in sources.answers:
        sources.answers[value, kind] = _problem(found[value], kind)
    return {value: file.id for value, file in found.items() if isinstance(file, FileRecord)}


async def _find_files(state: ApiState, caller: Caller, names: set[str]) -> dict[str, FileRecord | MediaError]:
    ids = {name: name[len(FILE_SCHEME) :] for name in names}
    records = await state.store.files.find_many(set(ids.values()), caller.id)
    return {name: records[file_id] or _no_such_file() for name, file_id in ids.items()}


async def _fetch(state: ApiState, caller: Caller, url: str) -> FileRecord:
    """Fetches the media at ``url`` into a file of the caller."""
    if state.media_guard is None:
        # The same error as if no sources were configured.
        raise refused(url) or AssertionError(url)
    settings = state.settings
    content = await state.media_guard.fetch(url, settings.max_fetch_bytes, settings.fetch_timeout_s)
    if not content:
        raise MediaError(ErrorCode.INVALID_MEDIA, "The media are empty.")
    file = await run_in_threadpool(_describe, content, caller.id, state.media_limits)
    return await state.store.files.add(file, io.BytesIO(content), FETCHED_TTL_S)


def _describe(content: bytes, owner: str, limits: MediaLimits) -> NewFile:
    media_type, error = sniff(io.BytesIO(content), limits)
    problem = None if error is None else (error.code.value, error.message)
    return NewFile(owner, len(content), hashlib.sha256(content).hexdigest(), media_type, problem=problem)


def _problem(found: FileRecord | MediaError, kind: str) -> MediaError | None:
    if isinstance(found, MediaError):
        return found
    problem = None if found.problem is None else MediaError(ErrorCode(found.problem[0]), found.problem[1])
    error = unfit(found.media_type, kind)
    if error is not None and found.media_type == ANYTHING and kind == "image":
        # The problem says which other format the file has.
        return problem or error
    return error or problem


def _no_such_file() -> MediaError:
    return MediaError(ErrorCode.MEDIA_NOT_FOUND, "There is no such file, or it has expired: upload it again.")
