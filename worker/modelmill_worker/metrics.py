"""A node's own metrics: its child counts in files, and its parent serves them to Prometheus.

The files belong to the multiprocess mode of ``prometheus_client`` and are mapped into memory, so the counts
of a child outlive it, however it ends. At its first import, ``prometheus_client`` decides whether it counts
in memory or in files. So only functions import it here.
"""

from __future__ import annotations

import atexit
import logging
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

from modelmill_backends.device import torch_with_cuda

if TYPE_CHECKING:
    from wsgiref.simple_server import WSGIServer

    from prometheus_client import Counter, Gauge, Histogram
    from prometheus_client.metrics_core import Metric

logger = logging.getLogger(__name__)

DIRECTORY_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

QUEUE_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600)
FORWARD_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
SIZE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

DEAD_PID = 0
"""The pid under which the counts of dead children are merged."""

_files_lock = threading.Lock()


# The parent's side.


def prepare_directory() -> Path:
    """Makes the folder in which this node's children count. Called before the first child starts."""
    # One folder for each node: in a shared folder, each node would show the sum of all.
    folder = Path(tempfile.mkdtemp(prefix="modelmill-metrics-"))
    os.environ[DIRECTORY_VARIABLE] = str(folder)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


class MetricsServer:
    """Serves the node's metrics over HTTP, in a thread."""

    def __init__(self, server: WSGIServer, thread: threading.Thread) -> None:
        self._server = server
        self._thread = thread
        self.port = server.server_port

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def start_server(port: int, host: str = "127.0.0.1") -> MetricsServer | None:
    """Serves what the children counted. If the port is taken, logs it and goes on without metrics."""
    from prometheus_client import start_http_server

    collector: Any = _Children(Path(os.environ[DIRECTORY_VARIABLE]))
    try:
        server, thread = start_http_server(port, host, collector)
    except (OSError, OverflowError) as error:
        logger.error("metrics cannot be served on %s:%d: %s", host, port, error)
        return None
    logger.info("metrics are served on http://%s:%d/metrics", host, server.server_port)
    return MetricsServer(server, thread)


def child_died(pid: int) -> None:
    """Keeps the counts of a dead child, and removes its gauges: it uses no memory now."""
    folder = os.environ.get(DIRECTORY_VARIABLE)
    if folder:
        with _files_lock:
            _merge_counts(Path(folder), pid)


class _Children:
    """Collects the counts of all children, alive and dead."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.multiprocess import MultiProcessCollector

        with _files_lock:
            files = [str(file) for file in self._folder.glob("*.db") if _is_whole(file)]
            metrics: Iterable[Metric] = list(MultiProcessCollector.merge(files))  # type: ignore[no-untyped-call]
        yield from metrics


def _is_whole(file: Path) -> bool:
    """Whether a file can be read. A child that is killed while it makes its file leaves one that cannot."""
    from prometheus_client.multiprocess import MultiProcessCollector

    try:
        MultiProcessCollector.merge([str(file)])  # type: ignore[no-untyped-call]
    except Exception as error:
        logger.debug("metrics file %s is left out: %r", file.name, error)
        return False
    return True


def _merge_counts(folder: Path, pid: int) -> None:
    # One set of files for all dead children: else a model that kills its workers makes each scrape slower.
    from prometheus_client.mmap_dict import MmapedDict

    open_file: Any = MmapedDict
    for kind in ("counter", "histogram"):
        dead = folder / f"{kind}_{pid}.db"
        if not dead.exists():
            continue
        kept = open_file(str(folder / f"{kind}_{DEAD_PID}.db"))
        # If the file is broken somewhere, the values before that place count.
        with suppress(Exception):
            for key, value, timestamp, _ in open_file.read_all_values_from_file(str(dead)):
                kept.write_value(key, kept.read_value(key)[0] + value, timestamp)
        kept.close()
        dead.unlink()
    for gauge in folder.glob(f"gauge_*_{pid}.db"):
        gauge.unlink()


# The child's side.


@dataclass(frozen=True, slots=True)
class _Instruments:
    jobs: Counter
    queue_wait: Histogram
    inference: Histogram
    batch_size: Histogram
    loads: Counter
    load_seconds: Counter
    evictions: Counter
    gpu_memory: Gauge
    held_results: Gauge
    held_bytes: Gauge


_instruments: _Instruments | None = None
_instruments_lock = threading.Lock()


def _the_instruments() -> _Instruments | None:
    """This process's instruments. None if no parent made a folder: then nothing is counted."""
    global _instruments
    if _instruments is None and os.environ.get(DIRECTORY_VARIABLE):
        with _instruments_lock:
            if _instruments is None:
                _instruments = _make_instruments()
    return _instruments


def _make_instruments() -> _Instruments:
    from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

    registry = CollectorRegistry()
    of_task = ["task", "model"]
    return _Instruments(
        jobs=Counter(
            "modelmill_node_jobs", "Jobs that this node ended.", [*of_task, "status"], registry=registry
        ),
        queue_wait=Histogram(
            "modelmill_queue_wait_seconds",
            "From a job's acceptance to its claim.",
            of_task,
            registry=registry,
            buckets=QUEUE_BUCKETS_S,
        ),
        inference=Histogram(
            "modelmill_inference_seconds",
            "A batch's forward pass.",
            of_task,
            registry=registry,
            buckets=FORWARD_BUCKETS_S,
        ),
        batch_size=Histogram(
            "modelmill_batch_size",
            "Items in a forward pass.",
            of_task,
            registry=registry,
            buckets=SIZE_BUCKETS,
        ),
        loads=Counter("modelmill_model_loads", "Times a model was loaded.", ["model"], registry=registry),
        load_seconds=Counter(
            "modelmill_model_load_seconds", "Time spent loading a model.", ["model"], registry=registry
        ),
        evictions=Counter(
            "modelmill_model_evictions",
            "Times a model made room for another.",
            ["model"],
            registry=registry,
        ),
        gpu_memory=Gauge(
            "modelmill_gpu_memory_bytes",
            "What PyTorch holds of the GPU: allocated to tensors, or reserved from the driver.",
            ["kind"],
            registry=registry,
            multiprocess_mode="livesum",
        ),
        held_results=Gauge(
            "modelmill_held_results",
            "Results that wait because they cannot be written now.",
            registry=registry,
            multiprocess_mode="livesum",
        ),
        held_bytes=Gauge(
            "modelmill_held_result_bytes",
            "Bytes of these results.",
            registry=registry,
            multiprocess_mode="livesum",
        ),
    )


P = ParamSpec("P")


def _counting(count: Callable[Concatenate[_Instruments, P], None]) -> Callable[P, None]:
    """Makes a function that counts and never raises: an error in counting must not fail a job."""

    @wraps(count)
    def safely(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            if (instruments := _the_instruments()) is not None:
                count(instruments, *args, **kwargs)
        except Exception as error:
            logger.warning("a metric was not counted: %r", error)

    return safely


@_counting
def job_ended(to: _Instruments, task: str, model: str, status: str, queued_s: float) -> None:
    """A job was settled as ``status``. ``queued_s`` is the time from its acceptance to its claim."""
    to.jobs.labels(task, model, status).inc()
    to.queue_wait.labels(task, model).observe(queued_s)


@_counting
def batch_ran(to: _Instruments, task: str, model: str, size: int, seconds: float) -> None:
    """A forward pass of ``size`` items took ``seconds``."""
    to.inference.labels(task, model).observe(seconds)
    to.batch_size.labels(task, model).observe(size)
    _note_gpu_memory(to)


@_counting
def model_loaded(to: _Instruments, model: str, seconds: float) -> None:
    """A model was loaded."""
    to.loads.labels(model).inc()
    to.load_seconds.labels(model).inc(seconds)
    _note_gpu_memory(to)


@_counting
def model_evicted(to: _Instruments, model: str) -> None:
    """A model was unloaded to make room."""
    to.evictions.labels(model).inc()
    _note_gpu_memory(to)


@_counting
def results_held(to: _Instruments, count: int, size_bytes: int) -> None:
    """So many results wait because they cannot be written now."""
    to.held_results.set(count)
    to.held_bytes.set(size_bytes)


def _note_gpu_memory(to: _Instruments) -> None:
    if (torch := torch_with_cuda()) is not None and torch.cuda.is_initialized():
        to.gpu_memory.labels("allocated").set(torch.cuda.memory_allocated())
        to.gpu_memory.labels("reserved").set(torch.cuda.memory_reserved())
