"""Cases that the state machine cannot cover: bursts within a millisecond, blobs, what a deletion leaves."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
import redis

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import (
    ApiStore,
    Deletion,
    JobProgress,
    Limits,
    Outcome,
    Released,
    Settlement,
    Verdict,
    WorkerStore,
    keys,
    scripts,
)
from tests.support.servers import Valkey
from tests.support.store import claim, complete, read_job, run, submission, submit


@pytest.mark.parametrize("jobs_per_minute", [7, 60, 1 / 3, 100_000])
@pytest.mark.parametrize("burst", [1, 3, 50])
def test_a_burst_may_come_within_one_millisecond(
    settings: Settings, raw_redis: redis.Redis, jobs_per_minute: float, burst: int
) -> None:
    """All in one script, whose clock stands still. Rounding must not refuse the last job of a burst."""
    body = scripts.script("submit")
    limits = Limits(jobs_per_minute=jobs_per_minute, burst=burst)
    packed: list[Any] = []
    for _ in range(burst + 1):
        job = submission(limits=limits)
        raw_redis.set(keys.INPUT + job.id, job.body, ex=60)
        packed.append(scripts.pack_submit(job, settings))
    count = len(packed[0])
    together = (
        "local replies, all, n = {}, ARGV, tonumber(ARGV[1])\n"
        "local function accept(ARGV)\n" + body.source + "\nend\n"
        "for i = 2, #all, n do\n"
        "  local own = {}\n"
        "  for j = i, i + n - 1 do table.insert(own, all[j]) end\n"
        "  table.insert(replies, accept(own))\n"
        "end\n"
        "return replies"
    )
    flat = [argument for arguments in packed for argument in arguments]
    replies: Any = raw_redis.eval(together, 0, str(count), *map(str, flat))
    answers = [scripts.read_submit(reply) for reply in replies]
    assert [answer.verdict for answer in answers[:-1]] == [Verdict.ACCEPTED] * burst
    assert [answer.remaining for answer in answers[:-1]] == list(range(burst))[::-1]
    assert (answers[-1].verdict, answers[-1].remaining) == (Verdict.RATE_LIMITED, 0)
    interval_s = 60 / jobs_per_minute
    assert answers[-1].retry_after_s == pytest.approx(interval_s, abs=0.002)


def test_the_rate_is_each_callers_own_and_a_refused_job_costs_nothing(settings: Settings) -> None:
    limits = Limits(jobs_per_minute=1, burst=1)

    async def act(store: ApiStore) -> list[Verdict]:
        asked = [("one", limits), ("one", limits), ("two", limits), ("one", limits), ("one", Limits())]
        jobs = [submission(caller=caller, limits=each) for caller, each in asked]
        return [(await store.submit(job)).verdict for job in jobs]

    accepted, limited = Verdict.ACCEPTED, Verdict.RATE_LIMITED
    assert run(settings, act) == [accepted, limited, accepted, limited, accepted]


def test_what_a_full_queue_refuses_leaves_the_burst_as_it_is(settings: Settings) -> None:
    limits = Limits(jobs_per_minute=1, burst=5)
    full = settings.model_copy(update={"max_queue_depth": 2})

    async def act(store: ApiStore) -> list[tuple[Verdict, int | None]]:
        jobs = [submission(limits=each) for each in [limits] * 4 + [Limits()]]
        answers = [await store.submit(job) for job in jobs]
        return [(answer.verdict, answer.remaining) for answer in answers]

    accepted, refused = Verdict.ACCEPTED, Verdict.QUEUE_FULL
    assert run(full, act) == [(accepted, 4), (accepted, 3), (refused, 3), (refused, 3), (refused, None)]


def test_a_full_server_holds_large_results_back_and_ends_the_other_jobs(
    settings: Settings, own_valkey: Valkey
) -> None:
    own = settings.model_copy(update={"redis_url": own_valkey.url})
    store, raw = WorkerStore(own), redis.Redis.from_url(own_valkey.url)
    ids = submit(own, *(submission() for _ in range(3)))
    first, second, third = claim(store).jobs
    large = Outcome(second.id, second.fence, Status.COMPLETE, b'"' + b"x" * keys.INLINE_BYTES + b'"')
    outcomes: list[Outcome | Released] = [
        Outcome(first.id, first.fence, Status.COMPLETE, b"1"),
        large,
        Released(third.id, third.fence),
    ]
    raw.config_set("maxmemory", "1mb")
    try:
        assert store.settle(outcomes) == [Settlement.OK, Settlement.NOT_NOW, Settlement.OK]
        assert store.settle([large]) == [Settlement.NOT_NOW]
        found = [read_job(store, job_id) for job_id in ids]
        assert [each.status for each in found if each] == [Status.COMPLETE, Status.RUNNING, Status.STARTING]
        raw.config_set("maxmemory", "0")
        assert store.settle([large]) == [Settlement.OK]
        ended = read_job(store, second.id)
        assert ended is not None
        assert (ended.status, ended.result_json) == (Status.COMPLETE, large.result)
    finally:
        raw.close()
        store.close()


def test_a_quota_counts_what_has_not_ended(settings: Settings, store: WorkerStore) -> None:
    def verdicts(count: int, caller: str = "one") -> list[Verdict]:
        async def act(async_store: ApiStore) -> list[Verdict]:
            jobs = [submission(caller=caller, limits=Limits(max_jobs=2)) for _ in range(count)]
            return [(await async_store.submit(job)).verdict for job in jobs]

        return run(settings, act)

    accepted, full = Verdict.ACCEPTED, Verdict.QUOTA_FULL
    assert verdicts(3) == [accepted, accepted, full]
    assert verdicts(1, "two") == [accepted]
    claims = claim(store, 1)
    assert verdicts(1) == [full]
    store.settle(complete(claims))
    assert verdicts(2) == [accepted, full]


def test_a_deleted_job_that_runs_cannot_be_read_and_its_key_is_free(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    first = submission(idempotency_key="mine")
    submit(settings, first)
    claims = claim(store)

    async def act(async_store: ApiStore) -> tuple[list[Deletion], object, str, list[Deletion]]:
        verdicts = await async_store.delete([first.id])
        seen = await async_store.get(first.id)
        again = await async_store.submit(submission(idempotency_key="mine"))
        return verdicts, seen, again.id, await async_store.delete([first.id])

    verdicts, seen, second, repeated = run(settings, act)
    assert (verdicts, seen, repeated) == ([Deletion.DELETING], None, [Deletion.MISSING])
    assert second != first.id
    assert store.beat([(first.id, claims.jobs[0].fence)]).cancel == {first.id}
    store.settle(complete(claims, b'"' + b"x" * keys.INLINE_BYTES + b'"'))
    # The end of the old job does not remove the idempotency key of the new job.
    assert raw_redis.get(f"{keys.IDEMPOTENCY}anonymous:mine").split()[0] == second.encode()  # type: ignore[union-attr]
    left = {key.decode() for key in raw_redis.scan_iter(f"*{first.id}*")}
    assert left == set()


def test_a_deleted_job_whose_worker_died_goes_with_its_lease(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission())
    claim(store)
    run(settings, lambda async_store: async_store.delete([job_id]))
    store.reap()
    raw_redis.hset(keys.REAPER, "grace_until_ms", 0)
    raw_redis.zadd(keys.LEASES, {job_id: 1})
    assert store.reap().returned == 1
    assert not raw_redis.exists(keys.JOB + job_id)
    assert int(raw_redis.hget(keys.TOTALS, "jobs") or 0) == 0


@pytest.mark.parametrize("released", [False, True])
def test_the_progress_of_an_earlier_delivery_is_not_shown(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis, released: bool
) -> None:
    (job_id,) = submit(settings, submission())
    (job,) = claim(store).jobs
    raw_redis.hset(keys.JOB + job_id, "progress", '{"done":1,"total":2,"unit":"steps"}')
    if released:
        # It does not count as a delivery: its next delivery is its first again.
        store.settle([Released(job_id, job.fence)])
    else:
        raw_redis.zadd(keys.LEASES, {job_id: 1})
        store.reap()
        raw_redis.hset(keys.REAPER, "grace_until_ms", 0)
        store.reap()
    claim(store)
    record = read_job(store, job_id)
    assert record is not None
    assert record.progress is None


def test_payloads_in_the_blob_store_become_trash_when_no_job_needs_them(
    settings: Settings, raw_redis: redis.Redis
) -> None:
    def due_in_s(name: str) -> float:
        at = raw_redis.zscore(keys.TRASH, name)
        assert at is not None
        return at / 1000 - raw_redis.time()[0]

    async def act(async_store: ApiStore) -> None:
        ids = [str(uuid.uuid4()) for _ in range(3)]
        for job_id in ids:
            await async_store.submit(submission(id=job_id, blob=f"in/{job_id}", result_ttl_s=500.0))
        names = [f"in/{job_id}" for job_id in ids]
        assert raw_redis.zrange(keys.TRASH, 0, -1) == []
        assert raw_redis.keys(keys.INPUT + "*") == []
        # The payload of a job that can be run again stays as long as its record.
        await async_store.cancel(ids[0])
        assert due_in_s(names[0]) == pytest.approx(500, abs=5)
        await async_store.delete(ids[:2])
        assert [due_in_s(name) < 1 for name in names[:2]] == [True, True]
        assert raw_redis.zscore(keys.TRASH, names[2]) is None

    run(settings, act)


def test_the_result_of_a_deleted_job_in_the_blob_store_becomes_trash(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission(result_ttl_s=500.0))
    (job,) = claim(store).jobs
    end = Outcome(job_id, job.fence, Status.COMPLETE, b'"large"')
    name = scripts.out_blob(end)
    arguments = scripts.pack_settle([end], settings, [name])
    settle = scripts.script("settle")
    raw_redis.eval(settle.source, 0, *map(str, arguments))
    assert raw_redis.hget(keys.JOB + job_id, "out_blob") == name.encode()
    due_ms = raw_redis.zscore(keys.TRASH, name)
    assert due_ms is not None
    assert due_ms / 1000 - raw_redis.time()[0] == pytest.approx(500, abs=5)
    run(settings, lambda async_store: async_store.delete([job_id]))
    assert (raw_redis.zscore(keys.TRASH, name) or 0) / 1000 <= raw_redis.time()[0] + 1


def test_a_file_is_let_go_when_the_last_job_that_names_it_has_ended(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    raw_redis.hset(keys.FILE + "f", mapping={"owner": "anonymous", "bytes": 5})
    raw_redis.set(keys.BLOB + "f", b"bytes")
    raw_redis.hset(keys.TOTALS, "file_bytes", 5)
    raw_redis.zadd(keys.FILES, {"f": 1})
    submit(
        settings,
        submission(files={"file:f": "f", "https://example.com/f": "f"}),
        submission(files={"x": "f"}),
    )

    def sweep() -> None:
        async def act(async_store: ApiStore) -> None:
            await async_store._connection.run_script("sweep", [1000, 100])

        run(settings, act)

    for _ in range(2):
        sweep()
        assert raw_redis.exists(keys.FILE + "f", keys.BLOB + "f") == 2
        raw_redis.zadd(keys.FILES, {"f": 1})
        store.settle(complete(claim(store, 1)))
    sweep()
    assert raw_redis.exists(keys.FILE + "f", keys.BLOB + "f", keys.FILES) == 0
    assert raw_redis.hget(keys.TOTALS, "file_bytes") == b"0"


def test_late_parts_are_removed_and_publish_nothing(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission(batched=True, items=3))
    store.save_parts(job_id, {0: "{}"})
    assert not raw_redis.exists(keys.EVENTS + job_id)
    claims = claim(store)
    store.save_parts(job_id, {1: "{}"})
    assert raw_redis.xlen(keys.EVENTS + job_id) == 1
    store.settle(complete(claims))
    store.save_parts(job_id, {2: "{}"})
    assert not raw_redis.exists(keys.PARTS + job_id)
    assert raw_redis.xlen(keys.EVENTS + job_id) == 1


def test_a_job_that_is_forgotten_leaves_the_list_of_its_caller(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    ids = submit(settings, *(submission(caller="one", result_ttl_s=100.0) for _ in range(2)))
    store.settle(complete(claim(store, 1)))
    member = f"{ids[0]} one"
    due_ms = raw_redis.zscore(keys.EXPIRING, member)
    assert due_ms is not None
    assert due_ms / 1000 - raw_redis.time()[0] == pytest.approx(100, abs=5)
    store.reap()
    assert raw_redis.zcard(keys.JOBS + "one") == 2
    # A hundred seconds pass.
    raw_redis.delete(keys.JOB + ids[0])
    raw_redis.zadd(keys.EXPIRING, {member: 1})
    store.reap()
    assert raw_redis.zrange(keys.JOBS + "one", 0, -1) == [ids[1].encode()]
    assert not raw_redis.exists(keys.EXPIRING)


def test_news_does_not_hasten_a_webhook_that_waits_for_its_next_attempt(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission(webhook="https://example.com/", webhook_events=["progress"]))
    (job,) = claim(store).jobs
    for done in (1, 2):
        store.beat([(job_id, job.fence)], {job_id: JobProgress(done, 2, "steps")})
        assert raw_redis.zrange(keys.OUTBOX, 0, -1) == [f"{job_id} progress".encode()]
        raw_redis.zadd(keys.OUTBOX, {f"{job_id} progress": 10**15}, xx=True)
        store.beat([(job_id, job.fence)], {job_id: JobProgress(done, 2, "steps")})
        assert raw_redis.zscore(keys.OUTBOX, f"{job_id} progress") == 10**15
