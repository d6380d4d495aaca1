"""The process that runs a script logs the ends that no worker reported, and only those."""

from __future__ import annotations

import pytest
import redis

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import Outcome, Released, Return, WorkerStore, keys
from tests.support.store import MODEL, claim, complete, read_job, run, submission, submit


@pytest.fixture(autouse=True)
def _info(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "modelmill.store")


def line(job_id: str, end: str, deliveries: int) -> str:
    return f"job_end id={job_id} task=a-task model={MODEL} {end} deliveries={deliveries}"


def test_deadlines_found_by_the_reaper_and_by_a_claim(
    settings: Settings, store: WorkerStore, caplog: pytest.LogCaptureFixture, raw_redis: redis.Redis
) -> None:
    ids = submit(settings, *(submission(expires_in_s=50) for _ in range(2)))
    for job_id in ids:
        raw_redis.hset(keys.JOB + job_id, "deadline_ms", 1)
    assert claim(store, 1).jobs == ()
    raw_redis.zadd(keys.DEADLINES, {ids[1]: 1})
    assert store.reap().expired == 1
    assert caplog.messages == [line(job_id, "status=failed code=expired", 0) for job_id in ids]
    errors = [found.error for job_id in ids if (found := read_job(store, job_id))]
    assert [(error or {})["deliveries"] for error in errors] == [0, 0]


def test_the_limit_of_deliveries(
    settings: Settings, store: WorkerStore, caplog: pytest.LogCaptureFixture, raw_redis: redis.Redis
) -> None:
    job_id, other = submit(settings, submission(), submission())
    raw_redis.hset(keys.JOB + job_id, "deliveries", settings.max_deliveries)
    assert [job.id for job in claim(store).jobs] == [other]
    assert caplog.messages == [line(job_id, "status=failed code=delivery_limit", settings.max_deliveries)]
    found = read_job(store, job_id)
    assert found is not None
    assert (found.error or {})["deliveries"] == settings.max_deliveries


def test_the_third_crash_and_no_end_that_a_worker_asked_for(
    settings: Settings, store: WorkerStore, caplog: pytest.LogCaptureFixture
) -> None:
    (job_id,) = submit(settings, submission())
    for _ in range(3):
        assert caplog.messages == []
        store.settle([Released(job.id, job.fence, Return.CRASHED) for job in claim(store).jobs])
    assert caplog.messages == [line(job_id, "status=failed code=worker_crashed", 3)]
    submit(settings, *(submission() for _ in range(3)))
    done, failed, canceled = claim(store).jobs
    store.settle(
        [
            *complete(claim(store, fence=done.fence))[:1],
            Outcome(failed.id, failed.fence, Status.FAILED, error={"code": "inference_failed"}),
            Outcome(canceled.id, canceled.fence, Status.CANCELED),
        ]
    )
    assert len(caplog.messages) == 1


def test_canceled_and_deleted_while_it_waited(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    canceled, *deleted = submit(settings, *(submission() for _ in range(3)))

    async def act(store: object) -> None:
        await store.cancel(canceled)  # type: ignore[attr-defined]
        await store.delete(deleted)  # type: ignore[attr-defined]
        # No job ends a second time.
        await store.cancel(canceled)  # type: ignore[attr-defined]
        await store.delete([canceled])  # type: ignore[attr-defined]

    run(settings, act)
    assert caplog.messages == [line(job_id, "status=canceled", 0) for job_id in (canceled, *deleted)]


@pytest.mark.parametrize("silent", [False, True])
def test_canceled_while_it_ran_and_then_given_back(
    settings: Settings,
    store: WorkerStore,
    caplog: pytest.LogCaptureFixture,
    raw_redis: redis.Redis,
    silent: bool,
) -> None:
    (job_id,) = submit(settings, submission())
    (job,) = claim(store).jobs
    assert run(settings, lambda async_store: async_store.cancel(job_id)) == "requested"
    assert caplog.messages == []
    if silent:
        store.reap()
        raw_redis.hset(keys.REAPER, "grace_until_ms", 0)
        raw_redis.zadd(keys.LEASES, {job_id: 1})
        assert store.reap().returned == 1
    else:
        store.settle([Released(job_id, job.fence)])
    # A released job does not count as a delivery.
    assert caplog.messages == [line(job_id, "status=canceled", int(silent))]
