"""Claimed jobs in this process: opened into items, and closed with an outcome.

No Redis and no threads: the bytes of a request come in, an outcome comes out.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import Status
from modelmill.store import Claimed, Outcome, Settlement
from modelmill.store.end_log import format_end
from modelmill_backends.contract import Prepared
from modelmill_tasks.contract import TaskInput
from modelmill_tasks.item_warnings import ItemWarning, WarningCode
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.sources import OpenedSources

logger = logging.getLogger(__name__)

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
    """
    job = Job(claimed)
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
    texts = [item_json(item) for item in job.items]
    failed_items = sum(text.startswith(ITEM_ERROR) for text in texts)
    error: dict[str, Any] | None = job.error.as_data() if job.error else None
    if error is None and texts and failed_items == len(texts):
        error = json.loads(texts[0])["error"]
    if error is not None:
        data = error | {"deliveries": claimed.deliveries}
        return Outcome(claimed.id, claimed.fence, Status.FAILED, error=data, details=details)
    if warnings := _warnings(job.items):
        details |= {"warnings": warnings}
    if not claimed.batched:
        result = texts[0]
    else:
        details |= {"failed_items": failed_items}
        result = "[" + ",".join(texts) + "]"
    return Outcome(claimed.id, claimed.fence, Status.COMPLETE, result=result.encode(), details=details)


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
    item.result, _, warnings = part.partition(PART_SEPARATOR)
    if warnings:
        item.warnings = [ItemWarning(WarningCode(code), message) for code, message in json.loads(warnings)]


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


def log_reported_end(outcome: Outcome, claimed: Claimed, model: str, settlement: Settlement) -> None:
    """Logs one line for a job's end, as key=value pairs."""
    timings = outcome.details.get("timings", {})
    pairs = {
        "id": outcome.id,
        "task": claimed.task,
        "model": model,
        "status": outcome.status.value,
        "code": (outcome.error or {}).get("code"),
        "settled": settlement.value,
        "deliveries": claimed.deliveries,
        "batch_size": outcome.details.get("batch_size"),
        **timings,
    }
    level = logging.INFO if settlement is Settlement.OK else logging.WARNING
    logger.log(level, "%s", format_end(pairs))
