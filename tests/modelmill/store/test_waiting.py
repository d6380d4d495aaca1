"""The subscription of a process: which requests are woken by which event. ``tests/api`` tests it over
HTTP."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import redis

from modelmill.settings import Settings
from modelmill.store import ApiStore, JobNews, JobProgress, WorkerStore, keys
from modelmill.store.events import AT_ONCE, STARTED_ID, Event, cursor_of, is_end
from tests.support.store import claim, complete, run, submission

Act = Callable[[ApiStore, JobNews], Awaitable[None]]


def watching(settings: Settings, act: Act) -> None:
    async def main(store: ApiStore) -> None:
        watch = JobNews(settings, store)
        await watch.start()
        try:
            async with asyncio.timeout(10):
                await act(store, watch)
        finally:
            await watch.close()

    run(settings, main)


async def heard(watch: JobNews, store: ApiStore) -> None:
    """Returns when all messages that were published before have been passed on."""
    job = submission()
    await store.submit(job)
    with watch.until_end(job.id) as ended:
        await store.cancel(job.id)
        await ended


def test_many_are_waited_for_at_once(settings: Settings) -> None:
    async def act(store: ApiStore, watch: JobNews) -> None:
        jobs = [submission() for _ in range(3)]
        for job in jobs:
            await store.submit(job)
        ids = [job.id for job in jobs]
        with (
            watch.until_first_end(ids) as first,
            watch.until_first_end(ids[:1]) as other,
            watch.until_end(ids[2]) as last,
        ):
            assert watch.waiting == 3
            await store.cancel(ids[1])
            await first
            await store.cancel(ids[2])
            await last
            assert not other.done()
        assert watch.waiting == 0
        assert (watch._waiting, watch._following) == ({}, {})

    watching(settings, act)


def test_a_follower_is_woken_by_each_event_of_its_job(settings: Settings, store: WorkerStore) -> None:
    async def act(async_store: ApiStore, watch: JobNews) -> None:
        job, other = submission(batched=True, items=2), submission(model="another")
        for each in (job, other):
            await async_store.submit(each)
        with watch.follow(job.id) as news, watch.follow(other.id) as nothing:

            async def woken() -> None:
                await news.wait()
                news.clear()

            claims = await asyncio.to_thread(claim, store)
            await woken()
            pair = (job.id, claims.jobs[0].fence)
            await asyncio.to_thread(store.beat, [pair], {job.id: JobProgress(1, 2, "steps")})
            await woken()
            await asyncio.to_thread(store.save_parts, job.id, {0: "{}"})
            await woken()
            await asyncio.to_thread(store.beat, [pair])
            await heard(watch, async_store)
            assert not news.is_set()
            await asyncio.to_thread(store.settle, complete(claims))
            await woken()
            assert not nothing.is_set()
        assert not watch.webhook_due.is_set()

    async def without_hooks(async_store: ApiStore, watch: JobNews) -> None:
        # The subscription itself sets it once, because webhooks may have been due before.
        assert watch.webhook_due.is_set()
        watch.webhook_due.clear()
        await act(async_store, watch)

    watching(settings, without_hooks)


def test_a_hook_that_is_due_wakes_who_sends_it(settings: Settings, store: WorkerStore) -> None:
    async def act(async_store: ApiStore, watch: JobNews) -> None:
        watch.webhook_due.clear()
        job = submission(webhook="https://example.com/", webhook_events=["started", "ended"])
        await async_store.submit(job)
        claims = await asyncio.to_thread(claim, store)
        await watch.webhook_due.wait()
        watch.webhook_due.clear()
        await asyncio.to_thread(store.settle, complete(claims))
        await watch.webhook_due.wait()

    watching(settings, act)


def test_a_new_subscription_wakes_everybody_who_may_have_missed_something(
    settings: Settings, raw_redis: redis.Redis
) -> None:
    async def act(async_store: ApiStore, watch: JobNews) -> None:
        ended, lives = submission(), submission()
        for job in (ended, lives):
            await async_store.submit(job)
        watch.webhook_due.clear()
        with (
            watch.until_end(ended.id) as end,
            watch.until_end(lives.id) as no_end,
            watch.follow(lives.id) as news,
        ):
            # The connection is cut, so the message about the end is missed.
            subscriber = cast("Any", raw_redis).client_list(_type="pubsub")[0]["id"]
            raw_redis.client_kill_filter(_id=subscriber)
            await async_store.cancel(ended.id)
            await asyncio.gather(end, news.wait(), watch.webhook_due.wait())
            assert not no_end.done()

    watching(settings, act)


def test_no_request_waits_in_a_process_that_is_about_to_end(settings: Settings) -> None:
    async def act(_: ApiStore, watch: JobNews) -> None:
        with watch.follow("one") as news, watch.until_first_end(["one", "two"]) as ended:
            assert not watch.is_shutting_down
            watch.shut_down()
            assert watch.is_shutting_down
            assert news.is_set()
            assert ended.done()
        with watch.follow("one") as news, watch.until_end("one") as ended:
            assert news.is_set()
            assert ended.done()

    watching(settings, act)


def test_long_histories_are_read_in_parts(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    async def act(async_store: ApiStore) -> None:
        job = submission()
        await async_store.submit(job)
        assert await async_store.events.after(job.id, "") == []
        claims = claim(store)
        for number in range(AT_ONCE + 10):
            raw_redis.xadd(keys.EVENTS + job.id, {"type": "log", "data": str(number)})
        store.settle(complete(claims))
        cursor, read = "", list[Event]()
        while events := await async_store.events.after(job.id, cursor):
            assert len(events) <= AT_ONCE + 1
            read += events
            cursor = events[-1].id
            if is_end(cursor):
                break
        assert [event.kind for event in read] == ["started", *["log"] * (AT_ONCE + 10), "ended"]
        assert [int(event.data) for event in read[1:-1]] == list(range(AT_ONCE + 10))
        assert (read[0].id, cursor_of(cursor)) == (STARTED_ID, cursor)
        await async_store.delete([job.id])
        assert await async_store.events.after(job.id, "") is None

    run(settings, act)


def test_no_event_is_read_before_the_start(settings: Settings, raw_redis: redis.Redis) -> None:
    """Between the two reads a job may start, and have more events."""

    async def act(async_store: ApiStore) -> None:
        job = submission()
        await async_store.submit(job)
        raw_redis.xadd(keys.EVENTS + job.id, {"type": "log", "data": "{}"})
        assert await async_store.events.after(job.id, "") == []
        raw_redis.hset(keys.JOB + job.id, "started_ms", 1)
        assert [event.kind for event in await async_store.events.after(job.id, "") or ()] == [
            "started",
            "log",
        ]

    run(settings, act)
