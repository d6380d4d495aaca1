"""Jobs on their way through a worker: opened into items, formed into batches, run, and closed again.

No Redis and no threads here: bytes of requests go in, outcomes to be settled come out.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from backends.contract import Prepared, Runner
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import Status
from modelmill.store import Claimed, Ended
from tasks.contract import TaskInput
from tasks.registry import find_task

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Item:
    """One input inside a job. It ends with ``result`` or ``error``."""

    job: Job
    input: TaskInput
    prepared: Prepared[Any] | None = None
    group: Hashable = None
    result: str | None = None
    """The task's output as JSON text."""
    error: ModelmillError | None = None

    @property
    def is_done(self) -> bool:
        return self.result is not None or self.error is not None


@dataclass(eq=False)
class Job:
    """A claimed job in this process."""

    claimed: Claimed
    items: list[Item] = field(default_factory=list)
    error: ModelmillError | None = None
    """Set when the job as a whole failed."""
    canceled: bool = False
    batch_size: int = 0
    """The largest batch that one of its items ran in."""
    preprocess_s: float = 0.0
    forward_s: float = 0.0
    postprocess_s: float = 0.0

    @property
    def is_done(self) -> bool:
        return self.canceled or self.error is not None or all(item.is_done for item in self.items)


def open_job(claimed: Claimed, body: bytes | None) -> Job:
    """Reads a claimed job's request into items. A request that cannot be read fails the job, and only it."""
    job = Job(claimed)
    try:
        if body is None:
            raise ModelmillError(ErrorCode.INTERNAL, "The job's request is missing from the job store.")
        task = find_task(claimed.task)
        request = task.parse(body, batched=claimed.batched, trusted=True)
        job.items = [Item(job, item) for item in task.items(request)]
    except ModelmillError as error:
        job.error = error
    return job


def preprocess(runner: Runner[Any, Any], item: Item) -> None:
    """Prepares one item; its errors stay with it. May run in any thread."""
    started = time.monotonic()
    try:
        item.group = runner.group_key(item.input)
        item.prepared = runner.preprocess(item.input)
    except Exception as error:
        item.error = as_item_error(error, item)
    # Items of one job may add here from two threads; a lost hundredth of a second does no harm.
    item.job.preprocess_s += time.monotonic() - started


def form_batches(items: Sequence[Item], max_batch: int) -> Iterator[list[Item]]:
    """Batches of items that may share a forward pass, in order, within ``max_batch`` items and as much cost.

    An item whose cost alone is over the cap is a batch by itself.
    """
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        if not item.is_done and item.prepared is not None:
            groups.setdefault((item.job.claimed.task, item.group), []).append(item)
    for members in groups.values():
        batch: list[Item] = []
        cost = 0.0
        for item in members:
            item_cost = item.prepared.cost if item.prepared else 0.0
            if batch and (len(batch) >= max_batch or cost + item_cost > max_batch):
                yield batch
                batch, cost = [], 0.0
            batch.append(item)
            cost += item_cost
        if batch:
            yield batch


def run_batch(runner: Runner[Any, Any], batch: Sequence[Item]) -> None:
    """Runs one batch; every member ends with a result or an error.

    When a forward pass raises, the batch is halved until the item that is to blame stands alone.
    """
    prepared = [item.prepared for item in batch if item.prepared is not None]
    started = time.monotonic()
    try:
        raw = runner.forward(prepared)
        if len(raw) != len(batch):
            raise RuntimeError(f"the runner gave {len(raw)} results for a batch of {len(batch)}")
    except Exception as error:
        if len(batch) == 1:
            batch[0].error = as_item_error(error, batch[0])
            return
        middle = len(batch) // 2
        run_batch(runner, batch[:middle])
        run_batch(runner, batch[middle:])
        return
    forward_s = time.monotonic() - started
    for item, value in zip(batch, raw, strict=True):
        item.job.forward_s += forward_s
        item.job.batch_size = max(item.job.batch_size, len(batch))
        _postprocess(runner, item, value)


def _postprocess(runner: Runner[Any, Any], item: Item, raw: Any) -> None:
    started = time.monotonic()
    try:
        item.result = runner.postprocess(item.prepared, raw).model_dump_json()  # type: ignore[arg-type]
    except Exception as error:
        item.error = as_item_error(error, item)
    item.job.postprocess_s += time.monotonic() - started


def as_item_error(error: Exception, item: Item) -> ModelmillError:
    """What the caller is told. The traceback goes to the log, and there only."""
    if isinstance(error, ModelmillError):
        return error
    logger.error("job %s: the runner failed", item.job.claimed.id, exc_info=error)
    text = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
    return ModelmillError(
        ErrorCode.INFERENCE_FAILED, f"The model failed on this input: {type(error).__name__}: {text}"
    )


def close_job(job: Job, details: dict[str, Any]) -> Ended:
    """The outcome of a job that is done."""
    claimed = job.claimed
    details = details | {
        "batch_size": job.batch_size,
        "timings": {
            "queued_s": round(claimed.queued_s, 4),
            "preprocess_s": round(job.preprocess_s, 4),
            "forward_s": round(job.forward_s, 4),
            "postprocess_s": round(job.postprocess_s, 4),
        },
    }
    if job.canceled:
        return Ended(claimed.id, claimed.fence, Status.CANCELED, details=details)
    failures = [item.error for item in job.items if item.error is not None]
    error = job.error
    if error is None and job.items and len(failures) == len(job.items):
        error = failures[0]
    if error is not None:
        data = error.as_data() | {"deliveries": claimed.deliveries}
        return Ended(claimed.id, claimed.fence, Status.FAILED, error=data, details=details)
    if not claimed.batched:
        result = job.items[0].result or ""
    else:
        details |= {"failed_items": len(failures)}
        result = "[" + ",".join(map(_item_json, job.items)) + "]"
    return Ended(claimed.id, claimed.fence, Status.COMPLETE, result=result.encode(), details=details)


def _item_json(item: Item) -> str:
    if item.error is not None:
        return json.dumps({"error": item.error.as_data()})
    return item.result or ""
