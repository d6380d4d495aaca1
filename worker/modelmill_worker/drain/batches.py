"""Items in batches: prepared, formed into batches, and run. A batch that fails is halved.

No Redis and no threads.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_backends.contract import Runner
from modelmill_backends.failures import is_out_of_memory
from modelmill_backends.progress import ProgressSink
from modelmill_tasks.item_warnings import collecting
from modelmill_worker.drain.jobs import FileUnavailableError, Item

logger = logging.getLogger(__name__)


class DeviceLostError(Exception):
    """The device's context is gone. Only a new process can use the device again."""


class PassObserver:
    """Receives the events of each forward pass. This default does nothing."""

    def progress(self, batch: Sequence[Item]) -> ProgressSink:
        """Returns the receiver for the progress of a pass with many steps."""
        return ProgressSink()

    def entering(self, batch: Sequence[Item]) -> None:
        """The pass is about to begin."""

    def ran(self, items: int, seconds: float) -> None:
        """A pass of ``items`` took ``seconds``."""

    def out_of_memory(self, items: int) -> None:
        """A pass of ``items`` did not fit into memory, although each of them alone does."""


def preprocess(runner: Runner[Any, Any], item: Item) -> None:
    """Prepares one item. If it fails, the error is kept in the item. May run in any thread.

    If a file cannot be read now, the item stays unprepared, and its job is released at the end of the run.
    """
    started = time.monotonic()
    try:
        item.group = runner.group_key(item.input)
        with collecting(item.warnings):
            item.prepared = runner.preprocess(item.input)
    except FileUnavailableError as error:
        logger.warning("job %s waits for a file: %s", item.job.claimed.id, error)
    except Exception as error:
        item.error = _item_error(error, item)
    item.job.preprocess_s += time.monotonic() - started


def form_batches(items: Sequence[Item], max_batch: int) -> Iterator[list[Item]]:
    """Forms batches of prepared items that may share a forward pass.

    Each batch has at most ``max_batch`` items, and their costs add up to at most ``max_batch``. An item whose
    cost alone is larger gets a batch of its own, and so does each item of a suspect.
    """
    groups: dict[Hashable, list[Item]] = {}
    for item in items:
        if not item.is_done and item.prepared is not None:
            alone = (item.job.claimed.id, item.index) if item.job.claimed.suspect else None
            groups.setdefault((item.job.claimed.task, item.group, alone), []).append(item)
    for members in groups.values():
        batch: list[Item] = []
        cost = 0.0
        # Items of like cost go together: texts of like length need little padding.
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


def run_batch(runner: Runner[Any, Any], batch: Sequence[Item], observer: PassObserver | None = None) -> bool:
    """Runs one batch. Every item in it ends with a result or an error, or its whole job has failed.

    If the forward pass raises, the batch is halved until the item that causes the error is alone.

    Returns:
        Whether an item ran out of memory while it was alone in its batch. Then the item is too large, and
        not the batch.

    Raises:
        DeviceLostError: this process can no longer use the device.
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
            batch[0].error = _item_error(error, batch[0])
            return out_of_memory
    # Outside of `except`: the exception holds the frames, and the frames hold the tensors that were too
    # large.
    if raw is None:
        return _run_halves(runner, batch, observer, out_of_memory=out_of_memory)
    forward_s = time.monotonic() - started
    observer.ran(len(batch), forward_s)
    for item, value in zip(batch, raw, strict=True):
        item.job.forward_s += forward_s
        item.job.batch_size = max(item.job.batch_size, len(batch))
        _postprocess(runner, item, value)
    return False


def _run_halves(
    runner: Runner[Any, Any], batch: Sequence[Item], observer: PassObserver, *, out_of_memory: bool
) -> bool:
    middle = len(batch) // 2
    too_large = [run_batch(runner, half, observer) for half in (batch[:middle], batch[middle:])]
    if out_of_memory and not any(too_large):
        logger.warning("a batch of %d did not fit into memory", len(batch))
        observer.out_of_memory(len(batch))
    return any(too_large)


def _forward(runner: Runner[Any, Any], batch: Sequence[Item]) -> Sequence[Any]:
    raw = runner.forward([item.prepared for item in batch if item.prepared is not None])
    if len(raw) != len(batch):
        raise RuntimeError(f"the runner gave {len(raw)} results for a batch of {len(batch)}")
    return raw


def _postprocess(runner: Runner[Any, Any], item: Item, raw: Any) -> None:
    if item.job.error is not None:
        # An item before it made the job's result too large.
        return
    started = time.monotonic()
    try:
        with collecting(item.warnings):
            output = runner.postprocess(item.prepared, raw)  # type: ignore[arg-type]
        item.job.finish_item(item, output.model_dump_json())
    except Exception as error:
        item.error = _item_error(error, item)
    item.job.postprocess_s += time.monotonic() - started


def _item_error(error: Exception, item: Item) -> ModelmillError:
    """The error that the caller sees. The traceback goes to the log only."""
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
    """Whether CUDA refuses everything else in this process after ``error``."""
    text = str(error)
    lost = ("illegal memory access", "device-side assert", "unspecified launch failure", "misaligned address")
    return "CUDA" in text and any(word in text for word in lost)
