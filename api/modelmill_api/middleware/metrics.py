"""Prometheus metrics: this process counts requests; all else is read from the job store."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from modelmill.states import ModelPhase
from modelmill.store import Snapshot, StoreWarning, StoreWarningCode

MEDIA_TYPE = CONTENT_TYPE_PLAIN_0_0_4
# A time of creation for each counter would double the number of series, and Prometheus does not use it.
disable_created_metrics()  # type: ignore[no-untyped-call]

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


_ROUTE, _WAITED = "modelmill.route", "modelmill.waited"


def name_route(scope: Scope, path: str) -> None:
    """Sets the route under which a request is counted, if it is not FastAPI's."""
    scope[_ROUTE] = path


def leave_out_of_latency(scope: Scope) -> None:
    """Counts a request without its duration, for one that takes as long as its caller likes."""
    scope[_WAITED] = True


class RequestMetrics:
    """The counters of this API process. Each API process has its own numbers."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "modelmill_http_requests",
            "Requests answered by this process.",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self._seconds = Histogram(
            "modelmill_http_request_seconds",
            "From a request's arrival to the end of its answer; without those that asked to wait.",
            ["method", "route"],
            registry=self.registry,
            buckets=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10),
        )
        self.waiting = Gauge(
            "modelmill_http_waiting",
            "Requests that wait for a job's end, or follow one, now.",
            registry=self.registry,
        )
        ProcessCollector(registry=self.registry)
        self._children: dict[tuple[str, str, int], tuple[Any, Any]] = {}

    def answered(self, scope: Scope, status: int, seconds: float) -> None:
        """Counts one request."""
        route = str(scope.get(_ROUTE) or getattr(scope.get("route"), "path", "unknown"))
        method = scope["method"] if scope["method"] in METHODS else "other"
        key = (method, route, status)
        # Looking up a label set costs more than counting.
        if key not in self._children:
            self._children[key] = (self._requests.labels(*key), self._seconds.labels(method, route))
        count, histogram = self._children[key]
        count.inc()
        if _WAITED not in scope:
            histogram.observe(seconds)


class CountRequests:
    """Counts requests. Middleware in plain ASGI: one closure per request and no task."""

    def __init__(self, app: ASGIApp, metrics: RequestMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # If the application raises, a layer further out answers 500.
        status = 500
        started = time.perf_counter()

        async def note_status(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, note_status)
        finally:
            self._metrics.answered(scope, status, time.perf_counter() - started)


class Exposition(Collector):
    """One scrape: the requests, and the job store's snapshot and warnings if there are any."""

    def __init__(
        self, requests: RequestMetrics, snapshot: Snapshot | None, warnings: Sequence[StoreWarning] = ()
    ) -> None:
        self._requests = requests
        self._snapshot = snapshot
        self._warnings = warnings

    def text(self) -> bytes:
        return generate_latest(self)

    def collect(self) -> Iterator[Metric]:
        up = 0 if self._snapshot is None else 1
        yield GaugeMetricFamily("modelmill_store_up", "Whether the job store answers.", value=up)
        if self._snapshot is not None:
            yield _store_warnings(self._warnings)
            yield _jobs(self._snapshot)
            yield from _queues(self._snapshot)
            yield from _workers(self._snapshot)
        yield from self._requests.registry.collect()


def _store_warnings(warnings: Sequence[StoreWarning]) -> Metric:
    found = {warning.code for warning in warnings}
    gauge = GaugeMetricFamily(
        "modelmill_store_warning",
        "Whether this is wrong with the job store.",
        labels=["code"],
    )
    for code in StoreWarningCode:
        gauge.add_metric([code.value], code in found)
    return gauge


def _jobs(snapshot: Snapshot) -> Metric:
    jobs = CounterMetricFamily(
        "modelmill_jobs", "Jobs that ended, over all workers.", labels=["task", "model", "status"]
    )
    for labels, count in snapshot.ended.items():
        jobs.add_metric(labels, count)
    return jobs


def _queues(snapshot: Snapshot) -> Iterator[Metric]:
    depth = GaugeMetricFamily("modelmill_queue_depth", "Jobs that wait for a model.", labels=["model"])
    oldest = GaugeMetricFamily(
        "modelmill_queue_oldest_seconds",
        "Age of the job that has waited longest in a model's queue, over all lanes.",
        labels=["model"],
    )
    for model, queue in snapshot.queues.items():
        depth.add_metric([model], queue.depth)
        oldest.add_metric([model], queue.oldest_s)
    yield depth
    yield oldest


def _workers(snapshot: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily("modelmill_workers", "Worker nodes that live.", value=len(snapshot.nodes))
    loaded = GaugeMetricFamily(
        "modelmill_model_loaded", "Whether a node has a model loaded.", labels=["model", "node"]
    )
    for node in snapshot.nodes:
        for model in node.models:
            loaded.add_metric([model, node.name], node.phase_of(model) is ModelPhase.RUNNING)
    yield loaded
