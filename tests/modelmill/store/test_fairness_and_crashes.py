"""Lanes that do not starve, the memory limit, suspects and crashes, parts of batched jobs."""

from __future__ import annotations

from collections import Counter

import pytest
import redis

from modelmill.settings import Settings
from modelmill.states import Lane, Status
from modelmill.store import (
    OPENING,
    ClaimReply,
    JobRecord,
    Released,
    Return,
    Settlement,
    Verdict,
    WorkerStore,
    keys,
)
from tests.support.store import MODEL, claim, complete, read_job, run, submission, submit


def record(store: WorkerStore, job_id: str) -> JobRecord:
    found = read_job(store, job_id)
    assert found is not None
    return found


def test_bulk_fills_what_the_other_lanes_leave(settings: Settings, store: WorkerStore) -> None:
    bulk = submit(settings, *(submission(lane=Lane.BULK) for _ in range(10)))
    fast = submit(settings, *(submission(lane=Lane.INTERACTIVE) for _ in range(3)))
    assert [job.id for job in claim(store, 8).jobs] == fast + bulk[:5]


@pytest.mark.parametrize("count", [1, 4, 8, 16, 64])
def test_no_lane_starves_however_busy_the_others_are(
    settings: Settings, store: WorkerStore, count: int
) -> None:
    lanes = {
        job_id: lane
        for lane in Lane
        for job_id in submit(settings, *(submission(lane=lane) for _ in range(160)))
    }
    taken: Counter[Lane] = Counter()
    while sum(taken.values()) < 128:
        taken += Counter(lanes[job.id] for job in claim(store, count).jobs)
    places = sum(taken.values())
    assert taken[Lane.NORMAL] >= places // 8 // min(count, 8)
    assert taken[Lane.BULK] >= places // 8 // min(count, 8)
    assert taken[Lane.INTERACTIVE] >= places * 3 // 4


LARGE, SMALL = b"x" * 400, b"x" * 10


def test_no_lane_starves_where_claims_end_at_their_bytes(settings: Settings, store: WorkerStore) -> None:
    """Two large jobs fill a claim of 16 places, so that no claim reaches the kept places."""
    loads = {Lane.INTERACTIVE: (LARGE, 64), Lane.NORMAL: (LARGE, 8), Lane.BULK: (SMALL, 8)}
    jobs = [submission(lane=lane, body=body) for lane, (body, n) in loads.items() for _ in range(n)]
    submit(settings, *jobs)
    lanes = {job.id: job.lane for job in jobs}
    claims = [[lanes[job.id] for job in claim(store, 16, max_bytes=1000).jobs] for _ in range(16)]
    assert [each[0] for each in claims].count(Lane.NORMAL) == 2
    assert [each[0] for each in claims].count(Lane.BULK) == 2
    # After its first job, a claim takes interactive jobs again.
    assert Counter(lane for each in claims for lane in each)[Lane.INTERACTIVE] >= 28


@pytest.mark.parametrize("lane", [Lane.NORMAL, Lane.BULK])
@pytest.mark.parametrize("count", [1, 16])
def test_a_suspect_in_a_lower_lane_gets_its_turn_alone(
    settings: Settings, store: WorkerStore, lane: Lane, count: int
) -> None:
    (suspect,) = submit(settings, submission(lane=lane))
    give_back(store, claim(store), Return.SUSPECT)
    windows: list[list[str]] = []
    for _ in range(8):
        # The queue always holds more jobs than a claim takes.
        submit(settings, *(submission(lane=Lane.INTERACTIVE) for _ in range(count + 1)))
        windows.append([job.id for job in claim(store, count).jobs])
    assert [suspect] in windows


def test_turns_are_counted_only_where_lanes_compete(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    submit(settings, *(submission(lane=Lane.BULK) for _ in range(9)))
    for _ in range(8):
        claim(store, 1)
    assert not raw_redis.exists(keys.TURNS)
    submit(settings, submission())
    claim(store, 1)
    assert raw_redis.hgetall(keys.TURNS) == {MODEL.encode(): b"1"}


def test_near_its_memory_limit_the_store_accepts_no_more(settings: Settings, raw_redis: redis.Redis) -> None:
    # Compared with this, the memory that connections and scripts take meanwhile is small.
    raw_redis.set("ballast", bytes(32 * 2**20))
    used = raw_redis.info("memory")["used_memory"]
    raw_redis.config_set("maxmemory", str(int(used / 0.75)))
    try:

        async def act(store: object) -> Verdict:
            return (await store.submit(submission())).verdict  # type: ignore[attr-defined, no-any-return]

        assert run(settings, act) is Verdict.ACCEPTED
        raw_redis.delete(keys.MEMORY)
        raw_redis.config_set("maxmemory", str(int(used / 0.85)))
        refused = submission()

        async def again(store: object) -> Verdict:
            return (await store.submit(refused)).verdict  # type: ignore[attr-defined, no-any-return]

        assert run(settings, again) is Verdict.STORE_FULL
        assert not raw_redis.exists(keys.INPUT + refused.id, keys.JOB + refused.id)
    finally:
        raw_redis.config_set("maxmemory", "0")
        raw_redis.delete("ballast")


def give_back(store: WorkerStore, claims: ClaimReply, why: Return, item: int = 0) -> None:
    outcomes = [Released(job.id, job.fence, why, item) for job in claims.jobs]
    assert set(store.settle(outcomes)) == {Settlement.OK}


def test_a_suspect_is_claimed_alone(settings: Settings, store: WorkerStore) -> None:
    ids = submit(settings, *(submission() for _ in range(4)))
    give_back(store, claim(store, 2), Return.SUSPECT)
    windows = [[job.id for job in claim(store).jobs] for _ in range(3)]
    assert windows == [[ids[0]], [ids[1]], ids[2:]]


def test_the_third_lone_crash_ends_a_job_and_not_before(settings: Settings, store: WorkerStore) -> None:
    (job_id,) = submit(settings, submission())
    for _ in range(2):
        give_back(store, claim(store), Return.CRASHED)
        assert record(store, job_id).status is Status.STARTING
    give_back(store, claim(store), Return.CRASHED)
    ended = record(store, job_id)
    assert (ended.status, ended.ends) == (Status.FAILED, 1)
    assert ended.error == {
        "code": "worker_crashed",
        "message": "The worker process died while it ran this input alone, 3 times.",
        "retryable": False,
        "deliveries": 3,
    }


def test_a_batched_job_that_kills_who_opens_it_fails_as_a_whole(
    settings: Settings, store: WorkerStore
) -> None:
    (job_id,) = submit(settings, submission(batched=True, items=5))
    # Crashes of its items are counted separately.
    for item in (OPENING, 0, OPENING, 0, OPENING):
        claims = claim(store)
        assert len(claims.jobs) == 1
        give_back(store, claims, Return.CRASHED, item)
    ended = record(store, job_id)
    assert (ended.status, (ended.error or {})["code"]) == (Status.FAILED, "worker_crashed")
    assert "while it opened this job alone" in (ended.error or {})["message"]
    assert store.parts(job_id) == {}


def test_a_suspect_that_runs_well_completes(settings: Settings, store: WorkerStore) -> None:
    (job_id,) = submit(settings, submission())
    give_back(store, claim(store), Return.SUSPECT)
    give_back(store, claim(store), Return.CRASHED)
    assert store.settle(complete(claim(store))) == [Settlement.OK]
    assert record(store, job_id).status is Status.COMPLETE


def test_a_crashing_item_of_a_batched_job_is_left_out_and_the_rest_goes_on(
    settings: Settings, store: WorkerStore
) -> None:
    (job_id,) = submit(settings, submission(batched=True, items=5))
    for _ in range(3):
        give_back(store, claim(store), Return.CRASHED, item=3)
    assert record(store, job_id).status is Status.STARTING
    assert store.parts(job_id).keys() == {3}
    assert '"worker_crashed"' in store.parts(job_id)[3]
    assert [job.suspect for job in claim(store).jobs] == [False]


def test_a_crash_counts_only_under_the_right_fence(settings: Settings, store: WorkerStore) -> None:
    (job_id,) = submit(settings, submission())
    claim(store)
    assert store.settle([Released(job_id, "stranger", Return.CRASHED)]) == [Settlement.REFUSED]
    assert record(store, job_id).status is Status.RUNNING


def test_parts_are_kept_until_the_job_ends(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission(batched=True, items=3))
    claims = claim(store)
    store.save_parts(job_id, {0: '{"n":0}', 2: '{"n":2}'})
    assert store.parts(job_id) == {0: '{"n":0}', 2: '{"n":2}'}
    store.settle(complete(claims, b"[]"))
    assert not raw_redis.exists(keys.PARTS + job_id)


def test_what_was_learned_of_batch_sizes_is_remembered(settings: Settings, store: WorkerStore) -> None:
    assert store.recall_sizing("m", "cpu") == {}
    store.remember_sizing("m", "cpu", {"cap": 16, "best": 4})
    assert store.recall_sizing("m", "cpu") == {"cap": 16, "best": 4}
    assert store.recall_sizing("m", "cuda") == {}
