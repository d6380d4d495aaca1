"""Deadlines of jobs that are given back, and workers whose clock is wrong."""

from __future__ import annotations

import time

import pytest
import redis

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ApiStore, Released, Return, Settlement, WorkerStore, keys
from modelmill.store.events import STARTED_ID
from tests.support.store import claim, complete, read_job, run, submission, submit


def pass_deadline(raw: redis.Redis, job_id: str) -> None:
    """Moves the job's deadline into the past."""
    raw.hset(keys.JOB + job_id, "deadline_ms", 1)
    raw.zadd(keys.DEADLINES, {job_id: 1}, xx=True)


@pytest.mark.parametrize("by_claim", [False, True])
def test_a_job_given_back_before_it_ran_keeps_its_deadline(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis, by_claim: bool
) -> None:
    (job_id,) = submit(settings, submission(expires_in_s=50))
    due_ms = raw_redis.zscore(keys.DEADLINES, job_id)
    (job,) = claim(store).jobs
    assert not raw_redis.exists(keys.DEADLINES)
    store.settle([Released(job_id, job.fence)])
    assert raw_redis.zscore(keys.DEADLINES, job_id) == due_ms
    waiting = read_job(store, job_id)
    assert waiting is not None
    assert (waiting.status, waiting.started_at) == (Status.STARTING, None)
    pass_deadline(raw_redis, job_id)
    if by_claim:
        assert claim(store).jobs == ()
    else:
        assert store.reap().expired == 1
    ended = read_job(store, job_id)
    assert ended is not None
    assert (ended.status, (ended.error or {})["code"]) == (Status.FAILED, "expired")


def test_a_job_that_was_run_once_no_longer_has_a_deadline(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission(expires_in_s=50, batched=True, items=3))
    why = [Return.SUSPECT, Return.CRASHED, Return.CRASHED, Return.CRASHED, Return.RELEASED]
    for each in why:
        # After the third crash the crashes no longer count as deliveries, but the job has been run.
        store.settle([Released(job.id, job.fence, each) for job in claim(store).jobs])
        pass_deadline(raw_redis, job_id)
        assert store.reap().expired == 0
    assert [job.id for job in claim(store).jobs] == [job_id]


def test_a_job_given_back_half_done_no_longer_has_a_deadline(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission(expires_in_s=50, batched=True, items=3))
    (job,) = claim(store).jobs
    store.save_parts(job_id, {0: "{}"})
    store.settle([Released(job_id, job.fence)])
    pass_deadline(raw_redis, job_id)
    assert store.reap().expired == 0
    assert [job.id for job in claim(store).jobs] == [job_id]


def test_a_follower_sees_that_a_job_is_given_back(settings: Settings, store: WorkerStore) -> None:
    (job_id,) = submit(settings, submission())
    (job,) = claim(store).jobs
    store.settle([Released(job_id, job.fence)])

    async def act(async_store: ApiStore) -> tuple[list[str], list[str]]:
        late = await async_store.events.after(job_id, "") or []
        seen = await async_store.events.after(job_id, STARTED_ID) or []
        return [event.kind for event in late], [event.kind for event in seen]

    # A client that comes late sees a job that waits.
    assert run(settings, act) == ([], ["log"])
    claim(store)
    assert run(settings, act) == (["started", "log", "log"], ["log", "log"])


@pytest.mark.parametrize("off_s", [3600.0, -3600.0])
def test_the_clock_of_a_worker_does_not_matter(
    settings: Settings,
    store: WorkerStore,
    raw_redis: redis.Redis,
    monkeypatch: pytest.MonkeyPatch,
    off_s: float,
) -> None:
    def now_ms() -> int:
        seconds, micros = raw_redis.time()
        return int(seconds) * 1000 + int(micros) // 1000

    before_ms = now_ms()
    ids = submit(settings, submission(expires_in_s=60), submission(expires_in_s=60))
    right, right_ns = time.time, time.time_ns
    monkeypatch.setattr(time, "time", lambda: right() + off_s)
    monkeypatch.setattr(time, "time_ns", lambda: right_ns() + round(off_s * 1e9))
    jobs = claim(store).jobs
    assert [job.id for job in jobs] == ids
    assert all(0 <= job.queued_s < 30 for job in jobs)

    def leases_are_right() -> bool:
        until_ms = [raw_redis.zscore(keys.LEASES, job_id) or 0 for job_id in ids]
        return all(0 < ms - now_ms() <= settings.lease_s * 1000 for ms in until_ms)

    assert leases_are_right()
    assert store.beat([(job.id, job.fence) for job in jobs]).lost == frozenset()
    assert leases_are_right()
    reaped = store.reap()
    assert (reaped.returned, reaped.expired) == (0, 0)
    assert store.settle(complete(claim(store, fence=jobs[0].fence))) == [Settlement.OK] * 2
    for job_id in ids:
        ended = read_job(store, job_id)
        assert ended is not None
        times = [ended.created_at, ended.started_at or 0, ended.finished_at or 0]
        assert times == sorted(times)
        assert all(before_ms <= at * 1000 <= now_ms() for at in times)
        assert (ended.expires_at or 0) - times[-1] == settings.result_ttl_s
