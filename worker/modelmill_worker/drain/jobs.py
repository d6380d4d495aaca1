"""Claimed jobs in this process: opened into items, and closed with an outcome.

No Redis and no threads: the bytes of a request come in, an outcome comes out.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import Status
from modelmill.store import Claimed, Outcome
from modelmill_backends.contract import Prepared
from modelmill_tasks.contract import TaskInput
from modelmill_tasks.item_warnings import ItemWarning, WarningCode
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.sources import OpenedSources
from modelmill_worker.drain.ends import too_large

ITEM_ERROR = '{"error":'
"""How a failed item of a batched job's result begins."""
MAX_WARNINGS = 256
"""Warnings in one job's document; it passes through Lua, so it must stay small."""
PART_SEPARATOR = "\n"
"""Between an item's result and its warnings, where the store keeps a finished item. JSON text that the worker
writes has no line end."""


@dataclass(eq=False)
class Item:
    """One input inside a job. It ends with ``result`` or ``error``."""

    job: Job
    index: int
    input: TaskInput
    prepared: Prepared[Any] | None = None
    group: Hashable = None
    """Items with equal groups may share a forward pass."""
    result: str | None = None
    """The task's output as JSON text. If an earlier delivery finished the item, it may be the JSON of an
    error."""
    error: ModelmillError | None = None
    warnings: list[ItemWarning] = field(default_factory=list)
    """Losses of this item. One thread at a time writes it: that which prepares, then that which runs."""

    @property
    def is_done(self) -> bool:
        return self.result is not None or self.error is not None


@dataclass(eq=False)
class Job:
    """A claimed job and its items."""

    claimed: Claimed
    items: list[Item] = field(default_factory=list)
    error: ModelmillError | None = None
    """Set if the job as a whole failed."""
    canceled: bool = False
    batch_size: int = 0
    """The largest batch that one of its items ran in."""
    load_s: float = 0.0
    """The part of its waiting time in which the model was loaded."""
    preprocess_s: float = 0.0
    """Written by the threads that prepare, without a lock: two items of one job may lose a few
    milliseconds."""
    forward_s: float = 0.0
    postprocess_s: float = 0.0
    max_result_bytes: int = sys.maxsize
    result_bytes: int = 0
    """Bytes of the results of its items so far. Drain thread only, after the job is opened."""

    def finish_item(self, item: Item, result: str) -> None:
        """Takes the result of one of its items. If all results together are too large, the job fails now.

        Then its other items do not run, and the memory of its results is free.
        """
        self.result_bytes += len(result) if result.isascii() else len(result.encode())
        if self.result_bytes > self.max_result_bytes:
            self.error = too_large(self.max_result_bytes)
        if self.error is None:
            item.result = result
        else:
            for each in self.items:
                each.result = None

    @property
    def is_done(self) -> bool:
        return self.canceled or self.error is not None or all(item.is_done for item in self.items)


class FileUnavailableError(Exception):
    """A file that a job names cannot be read now. This is temporary: the job is retried, not failed."""


def open_job(
    claimed: Claimed,
    body: bytes | None,
    parts: Mapping[int, str] | None = None,
    config_keys: Sequence[str] = (),
    read_file: Callable[[str], bytes] | None = None,
    max_result_bytes: int = sys.maxsize,
) -> Job:
    """Reads a claimed job's request into items. A request that cannot be read fails this job only.

    Args:
        claimed: The job.
        body: Its request.
        parts: Items of a batched job that an earlier delivery finished, as ``part_text`` made them, by
            index.
        config_keys: The config keys that the model adds to those of the task.
        read_file: Returns the bytes of a file that the request names, by id. It is called when an item is
            prepared. It raises ``MediaError`` if there is no such file, and ``FileUnavailableError`` if the
            store cannot be read now.
        max_result_bytes: The job fails if its result is larger.
    """
    job = Job(claimed, max_result_bytes=max_result_bytes)
    readers = {name: partial(read_file, file) for name, file in claimed.files.items()} if read_file else {}
    try:
        if body is None:
            raise ModelmillError(ErrorCode.INTERNAL, "The job's request is missing from the job store.")
        task = find_task(claimed.task).with_config_keys(config_keys)
        sources = OpenedSources(readers) if readers else None
        request = task.parse(body, batched=claimed.batched, trusted=True, sources=sources)
        job.items = [Item(job, index, item) for index, item in enumerate(task.items(request))]
        for index, text in (parts or {}).items():
            _restore(job.items[index], text)
    except ModelmillError as error:
        job.error = error
    return job


def close_job(job: Job, details: dict[str, Any]) -> Outcome:
    """Makes the outcome of a job that is done.

    Args:
        job: The job.
        details: What the job's document shows beside timings: node, device, revision.
    """
    claimed = job.claimed
    details = details | {
        "batch_size": job.batch_size,
        "timings": {
            "queued_s": round(claimed.queued_s - job.load_s, 4),
            "load_s": round(job.load_s, 4),
            "preprocess_s": round(job.preprocess_s, 4),
            "forward_s": round(job.forward_s, 4),
            "postprocess_s": round(job.postprocess_s, 4),
        },
    }
    if job.canceled:
        return Outcome(claimed.id, claimed.fence, Status.CANCELED, details=details)
    failed_items = sum(_is_error(item) for item in job.items)
    error: dict[str, Any] | None = job.error.as_data() if job.error else None
    if error is None and job.items and failed_items == len(job.items):
        error = json.loads(item_json(job.items[0]))["error"]
    result = b"" if error else _result(job)
    if len(result) > job.max_result_bytes:
        error = too_large(job.max_result_bytes).as_data()
    if error is not None:
        data = error | {"deliveries": claimed.deliveries}
        return Outcome(claimed.id, claimed.fence, Status.FAILED, error=data, details=details)
    if warnings := _warnings(job.items):
        details |= {"warnings": warnings}
    if claimed.batched:
        details |= {"failed_items": failed_items}
    return Outcome(claimed.id, claimed.fence, Status.COMPLETE, result=result, details=details)


def _result(job: Job) -> bytes:
    """The result of a job, as JSON text."""
    if not job.claimed.batched:
        return item_json(job.items[0]).encode()
    # Encoded one by one: joined text beside its encoded form would take twice the memory.
    whole = io.BytesIO()
    for item in job.items:
        whole.write(b"," if item.index else b"[")
        whole.write(item_json(item).encode())
    whole.write(b"]")
    return whole.getvalue()


def _is_error(item: Item) -> bool:
    return item.error is not None or (item.result or "").startswith(ITEM_ERROR)


def item_json(item: Item) -> str:
    """A finished item as the JSON text that stands in a batched job's result."""
    if item.error is not None:
        return json.dumps({"error": item.error.as_data()}, separators=(",", ":"))
    return item.result or ""


def part_text(item: Item) -> str:
    """A finished item as the store keeps it while its job goes on: its JSON text and its warnings."""
    text = item_json(item)
    if not item.warnings:
        return text
    pairs = [[warning.code, warning.message] for warning in item.warnings]
    return text + PART_SEPARATOR + json.dumps(pairs, separators=(",", ":"))


def _restore(item: Item, part: str) -> None:
    result, _, text = part.partition(PART_SEPARATOR)
    try:
        pairs = json.loads(text) if text else []
        item.warnings = [ItemWarning(WarningCode(code), message) for code, message in pairs]
    except ValueError:
        # A later release may know more codes. The item runs again.
        return
    item.job.finish_item(item, result)


def _warnings(items: Sequence[Item]) -> list[dict[str, Any]]:
    """The warnings of a job's items as the job's document shows them."""
    found: list[dict[str, Any]] = [
        {"item": item.index, "code": warning.code.value, "message": warning.message}
        for item in items
        if item.warnings
        for warning in item.warnings
    ]
    if (more := len(found) - MAX_WARNINGS) > 0:
        message = f"{more} more warnings are left out."
        found[MAX_WARNINGS:] = [{"item": None, "code": WarningCode.MORE_WARNINGS.value, "message": message}]
    return found
