"""The outbox of webhooks: taken under a lease, put back, closed, and logged."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import redis

from modelmill.settings import Settings
from modelmill.store import ApiStore, keys
from modelmill.store.webhooks import Attempt, Delivery, DeliveryOutcome


async def with_store(settings: Settings, call: Callable[[ApiStore], Any]) -> Any:
    jobs = ApiStore(settings)
    try:
        return await call(jobs)
    finally:
        await jobs.close()


def due(raw_redis: redis.Redis, event: str = "ended") -> str:
    """A webhook that is due, while no API runs that would send it."""
    job_id = str(uuid.uuid4())
    raw_redis.hset(
        keys.HOOKS + job_id, mapping={"url": "http://127.0.0.1:9/", "caller": "me", "status": "failed"}
    )
    raw_redis.zadd(keys.OUTBOX, {f"{job_id} {event}": 0})
    return job_id


def attempt_of(delivery: Delivery, outcome: DeliveryOutcome = DeliveryOutcome.FAILED) -> Attempt:
    return Attempt(delivery.id, delivery.event, outcome, 500, "No.", 0.1)


def test_what_a_dead_process_had_taken_is_sent_by_another(settings: Settings, raw_redis: redis.Redis) -> None:
    job_id = due(raw_redis)

    async def main(jobs: ApiStore) -> None:
        hooks = jobs.webhooks
        (dead,) = await hooks.take(10, 0.05)
        assert await hooks.take(10, 60) == []
        assert await hooks.keep_body(dead, "first") == "first"
        await asyncio.sleep(0.06)
        (living,) = await hooks.take(10, 60)
        assert (living.job_id, living.body, living.attempts) == (job_id, "first", 0)
        # If the first process goes on after its lease, its calls do not count.
        assert await hooks.keep_body(dead, "second") == ""
        await hooks.close(dead, attempt_of(dead, DeliveryOutcome.DELIVERED))
        await hooks.put_back(dead, 0)
        assert await hooks.log(job_id, "me") == []
        assert await hooks.keep_body(living, "second") == "first"
        await hooks.close(living, attempt_of(living, DeliveryOutcome.DELIVERED))
        (entry,) = await hooks.log(job_id, "me") or []
        assert (entry.outcome, entry.attempt, entry.next_at) == (DeliveryOutcome.DELIVERED, 1, None)
        assert await hooks.log(job_id, "another caller") is None

    asyncio.run(with_store(settings, main))
    assert raw_redis.zcard(keys.OUTBOX) == 0
    # The body is kept only until the webhook is sent.
    assert raw_redis.hget(keys.HOOKS + job_id, "body:ended") is None
    assert 0 < raw_redis.ttl(keys.HOOKS + job_id) <= 5 * 86_400


def test_the_log_keeps_the_last_attempts(settings: Settings, raw_redis: redis.Redis) -> None:
    job_id = due(raw_redis)

    async def main(jobs: ApiStore) -> None:
        hooks = jobs.webhooks
        for _ in range(52):
            (delivery,) = await hooks.take(1, 60)
            await hooks.retry(delivery, attempt_of(delivery), 0)
        entries = await hooks.log(job_id, "me") or []
        assert (len(entries), entries[0].attempt, entries[-1].attempt) == (50, 3, 52)

    asyncio.run(with_store(settings, main))


def test_progress_of_an_ended_job_is_not_sent(settings: Settings, raw_redis: redis.Redis) -> None:
    due(raw_redis, "progress")
    assert asyncio.run(with_store(settings, lambda jobs: jobs.webhooks.take(10, 60))) == []
    assert raw_redis.zcard(keys.OUTBOX) == 0
