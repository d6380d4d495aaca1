"""Jobs on their way through a worker: opened into items, formed into batches, run, and closed again.

No Redis and no threads here: bytes of requests go in, outcomes to be settled come out.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.states import Status
from modelmill.store import Claimed, Outcome, Settlement
from modelmill.store.end_log import format_end
from modelmill_backends.contract import Prepared, Runner
from modelmill_backends.failures import is_out_of_memory
from modelmill_backends.progress import ProgressSink
from modelmill_tasks.contract import TaskInput
from modelmill_tasks.registry import find_task
from modelmill_tasks.shared.sources import OpenedSources

logger = logging.getLogger(__name__)


@dataclass(eq=False)
class Item:
    """One input inside a job. It ends with ``result`` or ``error``."""

    job: Job
    index: int
    input: TaskInput
    prepared: Prepared[Any] | None = None
    group: Hashable = None
    result: str | None = None
    """The task's output as JSON text; of an earlier delivery, also the JSON of its error."""
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
    load_s: float = 0.0
    """How much of its waiting was for the model to load."""
    preprocess_s: float = 0.0
    forward_s: float = 0.0
    postprocess_s: float = 0.0

    @property
    def is_done(self) -> bool:
        return self.canceled or self.error is not None or all(item.is_done for item in self.items)


class DeviceLostError(Exception):
    """The device's context is gone; only a new process can use the device again."""


class FileAwayError(Exception):
    """A file that a job names cannot be read now, and maybe later: nobody's fault, and no end of the job."""


def open_job(
    claimed: Claimed,
    body: bytes | None,
    parts: Mapping[int, str] | None = None,
    config_keys: Sequence[str] = (),
    read_file: Callable[[str], bytes] | None = None,
) -> Job:
    """Reads a claimed job's request into items. A request that cannot be read fails the job, and only it.

    Args:
        claimed: The job.
        body: Its request.
        parts: Items of a batched job that an earlier delivery finished, as JSON text by index.
        config_keys: What the model lets callers set beside the task's own.
        read_file: Gives the bytes of a file that the request names, by id; called when they are needed. It
            raises ``MediaError`` when there is no such file, and ``FileAwayError`` when nobody can tell.
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
            job.items[index].result = text
    except ModelmillError as error:
        job.error = error
    return job


def preprocess(runner: Runner[Any, Any], item: Item) -> None:
    """Prepares one item; its errors stay with it. May run in any thread.

    An item whose file is away stays as it is, and with it its job.
    """
    started = time.monotonic()
    try:
        item.group = runner.group_key(item.input)
        item.prepared = runner.preprocess(item.input)
    except FileAwayError as error:
        logger.warning("job %s waits for a file: %s", item.job.claimed.id, error)
    except Exception as error:
        item.error = as_item_error(error, item)
    # Items of one job may add here from two threads; a lost hundredth of a second does no harm.
    item.job.preprocess_s += time.monotonic() - started


def form_batches(items: Sequence[Item], max_batch: int) -> Iterator[list[Item]]:
    """Batches of items that may share a forward pass, in order, within ``max_batch`` items and as much cost.

    An item whose cost alone is over the cap is a batch by itself, and so is each item of a suspect.
    """
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        if not item.is_done and item.prepared is not None:
            alone = (item.job.claimed.id, item.index) if item.job.claimed.suspect else None
            groups.setdefault((item.job.claimed.task, item.group, alone), []).append(item)
    for members in groups.values():
        batch: list[Item] = []
        cost = 0.0
        # Like costs go together: texts of like length need little padding.
        for item in sorted(members, key=_cost):
            item_cost = _cost(item)
            if batch and (len(batch) >= max_batch or cost + item_cost > max_batch):
                yield batch
                batch, cost = [], 0.0
            batch.append(item)
            cost += item_cost
        if batch:
            yield batch


def _cost(item: Item) -> float:
    return item.prepared.cost if item.prepared else 0.0


class PassObserver:
    """Is told of each forward pass; this one does not care."""

    def progress(self, batch: Sequence[Item]) -> ProgressSink:
        """Whom a pass of many steps tells how far it is."""
        return ProgressSink()

    def entering(self, batch: Sequence[Item]) -> None:
        """The pass is about to begin."""

    def ran(self, items: int, seconds: float) -> None:
        """A pass of ``items`` took ``seconds``."""

    def out_of_memory(self, items: int) -> None:
        """A pass of ``items`` did not fit into memory, and no single one of them is to blame."""


def run_batch(runner: Runner[Any, Any], batch: Sequence[Item], observer: PassObserver | None = None) -> bool:
    """Runs one batch; every member ends with a result or an error.

    When a forward pass raises, the batch is halved until the item that is to blame stands alone.

    Returns:
        Whether an item ran out of memory all alone: then it is to blame, and not the size of a batch.

    Raises:
        DeviceLostError: the device can no longer be used by this process.
    """
    observer = observer or PassObserver()
    observer.entering(batch)
    started = time.monotonic()
    out_of_memory = False
    try:
        runner.progress = observer.progress(batch)
        raw = _forward(runner, batch)
    except Exception as error:
        if _is_device_lost(error):
            raise DeviceLostError(str(error)) from error
        raw, out_of_memory = None, is_out_of_memory(error)
        if len(batch) == 1:
            batch[0].error = as_item_error(error, batch[0])
            return out_of_memory
    # Outside of `except`: the exception holds the frames, and they the tensors that were too large.
    if raw is None:
        middle = len(batch) // 2
        alone = [run_batch(runner, half, observer) for half in (batch[:middle], batch[middle:])]
        if out_of_memory and not any(alone):
            logger.warning("a batch of %d did not fit into memory", len(batch))
            observer.out_of_memory(len(batch))
        return any(alone)
    forward_s = time.monotonic() - started
    observer.ran(len(batch), forward_s)
    for item, value in zip(batch, raw, strict=True):
        item.job.forward_s += forward_s
        item.job.batch_size = max(item.job.batch_size, len(batch))
        _postprocess(runner, item, value)
    return False


def _forward(runner: Runner[Any, Any], batch: Sequence[Item]) -> Sequence[Any]:
    raw = runner.forward([item.prepared for item in batch if item.prepared is not None])
    if len(raw) != len(batch):
        raise RuntimeError(f"the runner gave {len(raw)} results for a batch of {len(batch)}")
    return raw


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
    if is_out_of_memory(error):
        return ModelmillError(
            ErrorCode.OUT_OF_MEMORY, "This input does not fit the device's memory, even alone in its batch."
        )
    text = str(error).strip().splitlines()[0][:300] if str(error).strip() else ""
    return ModelmillError(
        ErrorCode.INFERENCE_FAILED, f"The model failed on this input: {type(error).__name__}: {text}"
    )


def _is_device_lost(error: Exception) -> bool:
    """Errors after which CUDA refuses everything else in this process."""
    text = str(error)
    lost = ("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address")
    return "CUDA" in text and any(word in text for word in lost)


def close_job(job: Job, details: dict[str, Any]) -> Outcome:
    """The outcome of a job that is done."""
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
    if not claimed.batched:
        result = texts[0]
    else:
        details |= {"failed_items": failed_items}
        result = "[" + ",".join(texts) + "]"
    return Outcome(claimed.id, claimed.fence, Status.COMPLETE, result=result.encode(), details=details)


ITEM_ERROR = '{"error":'


def item_json(item: Item) -> str:
    """An item that has ended, as it stands in a batched job's result."""
    if item.error is not None:
        return json.dumps({"error": item.error.as_data()}, separators=(",", ":"))
    return item.result or ""


def log_reported_end(outcome: Outcome, claimed: Claimed, model: str, verdict: Settlement) -> None:
    """One line a job's end, as key=value pairs."""
    timings = outcome.details.get("timings", {})
    pairs = {
        "id": outcome.id,
        "task": claimed.task,
        "model": model,
        "status": outcome.status.value,
        "code": (outcome.error or {}).get("code"),
        "settled": verdict.value,
        "deliveries": claimed.deliveries,
        "batch_size": outcome.details.get("batch_size"),
        **timings,
    }
    logger.log(logging.INFO if verdict is Settlement.OK else logging.WARNING, "%s", format_end(pairs))
