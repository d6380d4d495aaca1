"""Sends webhooks, from a queue that outlives the process.

Signatures, headers and the schedule are those of https://www.standardwebhooks.com.
"""

from __future__ import annotations

import asyncio
import json
import logging
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from standardwebhooks import Webhook

from modelmill.errors import ModelmillError
from modelmill.hosts import parse_url
from modelmill.outbound import Guard, RefusedError
from modelmill.states import Status
from modelmill.store import ApiStore, JobRecord
from modelmill.store.webhooks import Attempt, Delivery, DeliveryOutcome
from modelmill_api.responses import job_document
from modelmill_api.state import ApiState

logger = logging.getLogger(__name__)

SCHEDULE_S = (5.0, 300.0, 1800.0, 7200.0, 18000.0, 36000.0, 50400.0, 72000.0, 86400.0)
"""Pauses between attempts, as Standard Webhooks proposes. After the tenth attempt there is no other."""
JITTER = 0.1
"""Share by which a pause is longer or shorter, so that webhooks which failed together are spread."""
AT_ONCE, AT_ONCE_PER_HOST = 16, 4
"""Attempts that run at the same time, in all and for one host."""
TAKEN, TAKEN_PER_HOST = 64, 8
"""Webhooks that this process has taken, including those that wait for their turn. If there are more for one
host, they go back to the queue, so that a slow host does not delay the others."""
BUSY_S = 5.0
"""After how long a webhook that went back to the queue is due again."""
LOOK_S = 1.0
"""How often this process looks at the queue if no news says that a webhook is due."""
FAREWELL_S = 3.0
"""How long attempts that are running may take when the process ends."""
MAX_RESULT_BYTES = 64 * 1024
"""A larger result is not in the webhook; its address is."""


class Deliverer:
    """Takes webhooks that are due and sends them, a few at a time.

    Several processes may do so. A webhook that one process has taken is its own until the lease expires.

    Args:
        store: The job store.
        guard: Decides where webhooks may be sent.
        timeout_s: How long one attempt may take.
    """

    def __init__(self, store: ApiStore, guard: Guard, timeout_s: float) -> None:
        self._store = store
        self._webhooks = store.webhooks
        self._guard = guard
        self._timeout_s = timeout_s
        # Longer than the last webhook that is taken for one host waits and is sent.
        self._lease_s = 60.0 + timeout_s * (TAKEN_PER_HOST / AT_ONCE_PER_HOST + 1)
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._by_host: dict[str, asyncio.Semaphore] = {}
        self._taken: Counter[str] = Counter()
        self._tasks: dict[asyncio.Task[None], Delivery] = {}

    async def run(self, stopping: asyncio.Event, due: asyncio.Event) -> None:
        """Sends until ``stopping``. Looks at the queue each second, and at once when ``due`` is set."""
        in_trouble = False
        try:
            while not stopping.is_set():
                due.clear()
                try:
                    more = await self._take(due)
                except ModelmillError as error:
                    if not in_trouble:
                        logger.warning("webhooks cannot be sent for now: %s", error.message)
                    in_trouble, more = True, False
                else:
                    in_trouble = False
                if not more:
                    await _first_of(stopping, due, timeout_s=LOOK_S)
        finally:
            await self._farewell()

    async def _take(self, due: asyncio.Event) -> bool:
        """Starts as many as there is room for. Returns whether there may be more."""
        room = TAKEN - len(self._tasks)
        if room <= 0:
            return False
        deliveries = await self._webhooks.take(room, self._lease_s)
        for delivery in deliveries:
            task = asyncio.create_task(self._deliver(delivery))
            self._tasks[task] = delivery

            def done(task: asyncio.Task[None]) -> None:
                if len(self._tasks) == TAKEN:
                    due.set()
                self._tasks.pop(task, None)

            task.add_done_callback(done)
        return len(deliveries) == room

    async def _farewell(self) -> None:
        left: set[asyncio.Task[None]] = set()
        if self._tasks:
            _, left = await asyncio.wait(self._tasks, timeout=FAREWELL_S)
        for task in left:
            task.cancel()
        # They go back to the queue, so that the next process need not wait for their leases to expire.
        unsent = [self._tasks[task] for task in left]
        await asyncio.gather(*left, return_exceptions=True)
        with suppress(ModelmillError):
            for delivery in unsent:
                await self._webhooks.put_back(delivery, 0.0)

    async def _deliver(self, delivery: Delivery) -> None:
        host = _host(delivery.url)
        try:
            if self._taken[host] >= TAKEN_PER_HOST:
                await self._webhooks.put_back(delivery, _about(BUSY_S, 0.5))
                return
            async with self._turn(host), self._slots:
                attempt = await self._attempt(delivery)
            if attempt is None:
                return
            delay_s = self._pause(delivery, attempt)
            if delay_s is None:
                await self._webhooks.close(delivery, attempt)
            else:
                await self._webhooks.retry(delivery, attempt, delay_s)
        except ModelmillError as error:
            # The lease expires, and the webhook is sent again.
            logger.warning("webhook %s: %s", delivery.id, error.message)
        except Exception:
            logger.exception("webhook %s failed", delivery.id)

    @asynccontextmanager
    async def _turn(self, host: str) -> AsyncIterator[None]:
        self._taken[host] += 1
        try:
            async with self._by_host.setdefault(host, asyncio.Semaphore(AT_ONCE_PER_HOST)):
                yield
        finally:
            self._taken[host] -= 1
            if not self._taken[host]:
                del self._taken[host], self._by_host[host]

    def _pause(self, delivery: Delivery, attempt: Attempt) -> float | None:
        """How long to wait before the next attempt; None if there is none."""
        if attempt.outcome is not DeliveryOutcome.FAILED or delivery.attempts >= len(SCHEDULE_S):
            return None
        if delivery.event == "progress":
            return None  # the next one has newer progress
        return _about(SCHEDULE_S[delivery.attempts], JITTER)

    async def _attempt(self, delivery: Delivery) -> Attempt | None:
        """Sends it once. None if this process may no longer send it."""
        body = delivery.body
        if not body:
            composed = compose(delivery, await self._store.get(delivery.job_id))
            body = await self._webhooks.keep_body(delivery, composed)
        if not body:
            return None
        headers = signed(delivery.id, body, await self._webhooks.secrets(delivery.caller))
        started = time.monotonic()
        status: int | None = None
        error: str | None = None
        try:
            status = await self._guard.post(delivery.url, body.encode(), headers, self._timeout_s)
        except RefusedError as refused:
            outcome, error = DeliveryOutcome.REFUSED, refused.message
        except ModelmillError as failed:
            outcome, error = DeliveryOutcome.FAILED, failed.message
        else:
            outcome, error = _judged(status)
        return Attempt(
            id=delivery.id,
            event=delivery.event,
            outcome=outcome,
            status=status,
            error=error,
            duration_s=round(time.monotonic() - started, 3),
        )


async def deliver_until(stopping: asyncio.Event, state: ApiState) -> None:
    """Sends webhooks until ``stopping``."""
    deliverer = Deliverer(state.store, state.webhook_guard, state.settings.webhook_timeout_s)
    await deliverer.run(stopping, state.news.webhook_due)


def compose(delivery: Delivery, record: JobRecord | None) -> str:
    """The body of a webhook: ``type``, ``timestamp``, and the job's document as it is now.

    If the result is large, ``result_url`` is there instead. If the job is deleted by now, there is little
    more than its status.
    """
    event = delivery.event
    if record is None:
        known = {name: getattr(delivery, name) for name in ("status", "task", "model")}
        kind = delivery.status if event == "ended" else event
        return _body(kind, None, _json({"id": delivery.job_id, **known}))
    document = job_document(record, {})
    if event == "progress" and record.progress is not None:
        document["progress"] = asdict(record.progress)
    if event != "ended":
        return _body(event, record.started_at if event == "started" else None, _json(document))
    data = _json(document)
    if record.status is Status.COMPLETE:
        if record.result_json is not None and len(record.result_json) <= MAX_RESULT_BYTES:
            more = '"result":' + record.result_json.decode()
        else:
            more = f'"result_url":"/api/jobs/{record.id}/result"'
        data = f"{data[:-1]},{more}}}"
    return _body(record.status.value, record.finished_at, data)


def _body(kind: str, at: float | None, data: str) -> str:
    return f'{{"type":"job.{kind}","timestamp":"{_iso(at)}","data":{data}}}'


def signed(message_id: str, body: str, keys: Sequence[str]) -> Mapping[str, str]:
    """The headers of a webhook, signed with each of ``keys``."""
    now = datetime.now(UTC)
    return {
        "Content-Type": "application/json",
        "webhook-id": message_id,
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": " ".join(Webhook(key).sign(message_id, now, body) for key in keys),
    }


def _judged(status: int) -> tuple[DeliveryOutcome, str | None]:
    if 200 <= status < 300:
        return DeliveryOutcome.DELIVERED, None
    if status == 410:
        return DeliveryOutcome.GONE, "The receiver wants no more webhooks of this job."
    if 300 <= status < 400:
        return (
            DeliveryOutcome.FAILED,
            f"The receiver answered with status {status}; redirects are not followed.",
        )
    return DeliveryOutcome.FAILED, f"The receiver answered with status {status}."


def _host(url: str) -> str:
    try:
        return parse_url(url).host
    except ValueError:
        return ""  # refused later, with its reason


def _about(seconds: float, share: float) -> float:
    return seconds * random.uniform(1 - share, 1 + share)  # noqa: S311


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"))


def _iso(seconds: float | None) -> str:
    at = datetime.now(UTC) if seconds is None else datetime.fromtimestamp(seconds, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


async def _first_of(*events: asyncio.Event, timeout_s: float) -> None:
    waiting = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waiting, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in waiting:
            task.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
