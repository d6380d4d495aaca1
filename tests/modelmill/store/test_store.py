"""The job store on a real Valkey: the promises of each script."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import pytest
import redis

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.states import Lane, Status
from modelmill.store import (
    ApiStore,
    ClaimReply,
    Outcome,
    Released,
    Settlement,
    Verdict,
    WorkerStore,
    keys,
    scripts,
)
from tests.support.processes import wait_until
from tests.support.store import MODEL, claim, complete, may_ring, read_job, run, submission, submit


def place_of(raw: redis.Redis, job_id: str) -> str:
    """The place of a job: every job that has not ended is in exactly one of two places."""
    ready = raw.zscore(keys.READY + MODEL, job_id) is not None
    leased = raw.zscore(keys.LEASES, job_id) is not None
    return {(True, False): "ready", (False, True): "leased", (False, False): "none"}.get(
        (ready, leased), "both"
    )


def test_an_accepted_job_is_queued_with_its_payload_and_no_time_to_live(
    settings: Settings, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission(body=b"x" * 100_000))
    assert place_of(raw_redis, job_id) == "ready"
    assert raw_redis.get(keys.INPUT + job_id) == b"x" * 100_000
    assert raw_redis.ttl(keys.INPUT + job_id) == raw_redis.ttl(keys.JOB + job_id) == -1


def test_the_first_job_of_a_queue_rings_and_then_each_batchful_does(settings: Settings) -> None:
    async def act(store: ApiStore) -> list[bool]:
        return [(await store.submit(submission(bell_every=4))).bell for _ in range(9)]

    assert run(settings, act) == [True, False, False, True, False, False, False, True, False]


def test_no_second_bell_is_sent_until_the_drain_of_the_first_starts(
    settings: Settings, store: WorkerStore
) -> None:
    submit(settings, submission())
    assert not may_ring(store, MODEL)
    store.release_bell(MODEL)
    assert may_ring(store, MODEL)


def test_submitting_again_with_the_same_id_is_the_same_job(
    settings: Settings, raw_redis: redis.Redis
) -> None:
    job = submission()
    assert submit(settings, job, job) == [job.id, job.id]
    assert raw_redis.zcard(keys.READY + MODEL) == 1
    assert raw_redis.hget(keys.TOTALS, "jobs") == b"1"


def test_an_idempotency_key_replays_the_same_body_and_refuses_another(settings: Settings) -> None:
    async def act(store: ApiStore) -> list[tuple[Verdict, str]]:
        jobs = [
            submission(idempotency_key="k"),
            submission(idempotency_key="k"),
            submission(idempotency_key="k", body=b'{"n": 2}'),
            submission(idempotency_key="k", model="other"),
            submission(idempotency_key="k", caller="somebody-else"),
        ]
        answers = [await store.submit(job) for job in jobs]
        assert answers[0].id == answers[1].id == jobs[0].id
        return [(answer.verdict, answer.id) for answer in answers]

    assert [verdict for verdict, _ in run(settings, act)] == [
        Verdict.ACCEPTED,
        Verdict.REPLAYED,
        Verdict.CONFLICT,
        Verdict.CONFLICT,
        Verdict.ACCEPTED,
    ]


@pytest.mark.parametrize(
    ("limits", "verdict"),
    [({"max_queue_depth": 2}, Verdict.QUEUE_FULL), ({"max_queued_bytes": 20}, Verdict.BYTES_FULL)],
)
def test_a_full_queue_refuses_and_keeps_nothing_of_the_refused(
    settings: Settings, raw_redis: redis.Redis, limits: dict[str, int], verdict: Verdict
) -> None:
    refused = submission()

    async def act(store: ApiStore) -> Verdict:
        await store.submit(submission())
        await store.submit(submission())
        return (await store.submit(refused)).verdict

    assert run(settings.model_copy(update=limits), act) is verdict
    assert not raw_redis.exists(keys.INPUT + refused.id, keys.JOB + refused.id)


def test_claims_come_by_lane_and_then_in_order(settings: Settings, store: WorkerStore) -> None:
    lanes = [Lane.BULK, Lane.NORMAL, Lane.INTERACTIVE, Lane.NORMAL, Lane.BULK]
    ids = submit(settings, *(submission(lane=lane) for lane in lanes))
    assert [job.id for job in claim(store).jobs] == [ids[2], ids[1], ids[3], ids[0], ids[4]]


def test_a_claim_keeps_within_its_count_and_its_bytes(settings: Settings, store: WorkerStore) -> None:
    submit(settings, *(submission(body=b"x" * 100) for _ in range(6)))
    assert len(claim(store, count=2).jobs) == 2
    assert len(claim(store, max_bytes=250).jobs) == 2
    # A job that alone is over the limit of bytes is still claimed, alone.
    assert len(claim(store, max_bytes=10).jobs) == 1


def test_a_replayed_claim_returns_the_same_jobs(settings: Settings, store: WorkerStore) -> None:
    submit(settings, *(submission() for _ in range(5)))
    first, again = claim(store, 3, "fence"), claim(store, 3, "fence")
    assert [job.id for job in first.jobs] == [job.id for job in again.jobs]
    assert [job.deliveries for job in again.jobs] == [1, 1, 1]
    assert again.remaining == 2


def test_a_claimed_job_is_leased_and_its_request_can_be_read(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    ids = submit(settings, submission(body=b"one"), submission(body=b"two"))
    claims = claim(store)
    assert [place_of(raw_redis, job_id) for job_id in ids] == ["leased", "leased"]
    assert store.inputs(claims.jobs) == [b"one", b"two"]


def test_settling_ends_a_job_once_and_a_replay_is_a_success(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission())
    outcomes = complete(claim(store))
    assert store.settle(outcomes) == store.settle(outcomes) == [Settlement.OK]
    record = read_job(store, job_id)
    assert record is not None
    assert (record.status, record.result, record.ends) == (Status.COMPLETE, {"ok": True}, 1)
    assert place_of(raw_redis, job_id) == "none"
    assert raw_redis.hgetall(keys.TOTALS) == {b"jobs": b"0", b"bytes": b"0"}
    assert raw_redis.hgetall(keys.COUNTERS) == {f"a-task|{MODEL}|complete".encode(): b"1"}


def test_only_the_holder_of_the_lease_can_settle(settings: Settings, store: WorkerStore) -> None:
    (job_id,) = submit(settings, submission())
    claim(store)
    assert store.settle([Outcome(job_id, "stranger", Status.FAILED, error={"code": "x"})]) == [
        Settlement.REFUSED
    ]
    record = read_job(store, job_id)
    assert record is not None
    assert record.status is Status.RUNNING


def test_a_worker_that_lost_its_lease_cannot_touch_the_next_ones_result(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    large = b'"' + b"a" * 70_000 + b'"'
    (job_id,) = submit(settings, submission())
    late = claim(store)
    wait_until(lambda: store.reap().returned, what="the lease to run out")
    assert store.settle(complete(claim(store), large)) == [Settlement.OK]
    assert store.settle(complete(late, b'"' + b"b" * 70_000 + b'"')) == [Settlement.REFUSED]
    record = read_job(store, job_id)
    assert record is not None
    assert record.result_json == large
    assert record.ends == 1


def test_a_large_result_has_a_key_of_its_own_and_expires_with_the_record(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission())
    large = b'"' + b"a" * keys.INLINE_BYTES + b'"'
    claims = claim(store)
    store.settle(complete(claims, large))
    # The reply was lost, so it is settled again: the result must not expire before the record.
    assert store.settle(complete(claims, large)) == [Settlement.OK]
    record = read_job(store, job_id)
    assert record is not None
    assert record.result_json == large
    assert b"result" not in raw_redis.hgetall(keys.JOB + job_id)
    lives = [raw_redis.ttl(key) for key in raw_redis.scan_iter(f"*{job_id}*")]
    assert len(lives) == 3, "the record, the result, and the request, which is small"
    assert all(settings.result_ttl_s - 5 <= left_s <= settings.result_ttl_s for left_s in lives)


@pytest.mark.parametrize("is_large", [True, False])
@pytest.mark.parametrize("status", [Status.COMPLETE, Status.FAILED, Status.CANCELED])
def test_the_large_request_of_a_complete_job_is_dropped_and_others_kept_as_long_as_the_record(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis, status: Status, is_large: bool
) -> None:
    body = b"x" * (settings.keep_request_bytes + is_large)
    (job_id,) = submit(settings, submission(body=body))
    ended = [Outcome(job.id, job.fence, status) for job in claim(store).jobs]
    store.settle(ended)
    life_s = raw_redis.ttl(keys.INPUT + job_id)
    if status is Status.COMPLETE and is_large:
        assert life_s == -2
    else:
        assert settings.result_ttl_s - 5 <= life_s <= settings.result_ttl_s
    # A replay of a settle whose reply was lost is a success.
    assert store.settle(ended) == [Settlement.OK]


def test_one_message_names_all_jobs_that_ended_in_one_script(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    ids = submit(settings, *(submission() for _ in range(3)))
    with cast("Any", raw_redis).pubsub(ignore_subscribe_messages=True) as heard:
        heard.subscribe(keys.ENDED_CHANNEL)
        store.settle(complete(claim(store)))
        messages = [one["data"] for _ in range(5) if (one := heard.get_message(timeout=0.5))]
    assert messages == ["\n".join(f"{job_id} complete" for job_id in ids).encode()]


def test_a_large_result_that_was_lost_is_not_settled(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission())
    (outcome,) = complete(claim(store), b'"' + b"a" * keys.INLINE_BYTES + b'"')
    script = scripts.script("settle")
    reply = raw_redis.eval(script.source, 0, *scripts.pack_settle([outcome], settings))
    assert scripts.read_settle(reply[0]) == [Settlement.MISSING]
    assert place_of(raw_redis, job_id) == "leased"


def test_a_released_job_keeps_its_place_and_does_not_count_as_a_delivery(
    settings: Settings, store: WorkerStore
) -> None:
    ids = submit(settings, submission(), submission())
    (first,) = claim(store, 1).jobs
    assert store.settle([Released(first.id, first.fence)]) == [Settlement.OK]
    again = claim(store)
    assert [job.id for job in again.jobs] == ids
    assert [job.deliveries for job in again.jobs] == [1, 1]


def test_beats_keep_a_lease_and_say_what_was_lost(settings: Settings, store: WorkerStore) -> None:
    submit(settings, submission())
    (job,) = claim(store).jobs
    until = time.monotonic() + settings.lease_s * 1.5
    while time.monotonic() < until:
        assert store.beat([(job.id, job.fence)]).lost == frozenset()
        assert store.reap().returned == 0
        time.sleep(0.1)
    assert store.beat([(job.id, "another fence"), ("unknown", job.fence)]).lost == {job.id, "unknown"}


def test_an_expired_lease_goes_back_to_its_old_place(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    ids = submit(settings, submission(), submission())
    claim(store, 1)
    wait_until(lambda: store.reap().returned, what="the lease to run out")
    assert place_of(raw_redis, ids[0]) == "ready"
    again = claim(store)
    assert [(job.id, job.deliveries) for job in again.jobs] == [(ids[0], 2), (ids[1], 1)]


def test_after_a_restart_of_the_server_leases_have_one_lease_of_grace(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission())
    store.reap()
    claim(store)
    time.sleep(settings.lease_s + 0.2)
    # The script sees a restarted server by its run id, which is another one than before.
    raw_redis.hset(keys.REAPER, "run_id", "the server before")
    assert store.reap().returned == 0
    assert place_of(raw_redis, job_id) == "leased"
    wait_until(lambda: store.reap().returned, what="the grace to end")


def test_the_reaper_rings_for_waiting_jobs_at_most_once_in_a_while(
    settings: Settings, store: WorkerStore
) -> None:
    submit(settings, submission())
    store.release_bell(MODEL)
    assert [store.reap().bells for _ in range(3)] == [(MODEL,), (), ()]


def test_a_job_past_its_deadline_fails_without_running(settings: Settings, store: WorkerStore) -> None:
    ids = submit(settings, submission(expires_in_s=0.05), submission(expires_in_s=0.05))
    time.sleep(0.1)
    assert claim(store, 1).jobs == ()
    assert store.reap().expired == 1
    for job_id in ids:
        record = read_job(store, job_id)
        assert record is not None
        assert record.error is not None
        assert (record.status, record.error["code"], record.ends) == (Status.FAILED, "expired", 1)


def test_a_job_that_is_handed_out_again_and_again_ends(settings: Settings, store: WorkerStore) -> None:
    limited = settings.model_copy(update={"max_deliveries": 2, "lease_s": 0.1})
    store = WorkerStore(limited)
    (job_id,) = submit(settings, submission())
    for _ in range(2):
        assert len(claim(store).jobs) == 1
        wait_until(lambda: store.reap().returned, what="the lease to run out")
    assert claim(store).jobs == ()
    record = read_job(store, job_id)
    assert record is not None
    assert record.error is not None
    assert (record.status, record.error["code"]) == (Status.FAILED, "delivery_limit")
    store.close()


def test_cancel_ends_a_queued_job_and_flags_a_running_one(settings: Settings, store: WorkerStore) -> None:
    running, queued = submit(settings, submission(), submission())
    (held,) = claim(store, 1).jobs

    async def act(async_store: ApiStore) -> list[str]:
        return [await async_store.cancel(job_id) for job_id in (queued, queued, running, "unknown")]

    assert run(settings, act) == ["canceled", "canceled", "requested", "missing"]
    assert store.beat([(held.id, held.fence)]).cancel == {running}
    # Its worker died before it saw the request to cancel: the job does not run again.
    wait_until(lambda: store.reap().returned, what="the lease to run out")
    record = read_job(store, running)
    assert record is not None
    assert (record.status, record.ends) == (Status.CANCELED, 1)


def test_settling_and_canceling_race_to_one_end(settings: Settings, store: WorkerStore) -> None:
    for _ in range(20):
        (job_id,) = submit(settings, submission())
        outcomes = complete(claim(store))

        async def act(async_store: ApiStore, job_id: str = job_id, outcomes: Any = outcomes) -> None:
            await asyncio.gather(async_store.cancel(job_id), asyncio.to_thread(store.settle, outcomes))

        run(settings, act)
        record = read_job(store, job_id)
        assert record is not None
        assert (record.status, record.ends) == (Status.COMPLETE, 1)


def test_two_claimers_never_hold_the_same_job(settings: Settings, store: WorkerStore) -> None:
    submit(settings, *(submission() for _ in range(200)))

    async def act(_: ApiStore) -> list[ClaimReply]:
        return await asyncio.gather(*(asyncio.to_thread(claim, store, 7) for _ in range(40)))

    taken = [job.id for claims in run(settings, act) for job in claims.jobs]
    assert len(taken) == len(set(taken)) == 200


def test_scripts_survive_a_server_that_forgot_them(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    submit(settings, submission())
    raw_redis.script_flush()
    submit(settings, submission())
    raw_redis.script_flush()
    assert len(claim(store).jobs) == 2


def test_at_maxmemory_nothing_is_accepted_and_running_jobs_still_end(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission())
    claims = claim(store)
    raw_redis.config_set("maxmemory", "1mb")
    store.announce("node", "parent", {}, 60)
    try:
        with pytest.raises(ModelmillError) as refused:
            submit(settings, submission())
        assert refused.value.code is ErrorCode.STORE_FULL
        assert store.settle(complete(claims)) == [Settlement.OK]
    finally:
        raw_redis.config_set("maxmemory", "0")
    record = read_job(store, job_id)
    assert record is not None
    assert record.status is Status.COMPLETE


def test_an_absent_server_is_an_error_that_says_so(settings: Settings) -> None:
    absent = settings.model_copy(update={"redis_url": "redis://127.0.0.1:1/0"})
    with pytest.raises(ModelmillError) as error:
        submit(absent, submission())
    assert error.value.code is ErrorCode.STORE_UNAVAILABLE
    assert error.value.retry_after_s


def test_a_queued_job_costs_little_beyond_its_payload(settings: Settings, raw_redis: redis.Redis) -> None:
    before = raw_redis.info("memory")["used_memory"]
    submit(settings, *(submission(body=b"x" * 1000) for _ in range(1000)))
    used = (raw_redis.info("memory")["used_memory"] - before) / 1000 - 1000
    assert used < 1024, f"{used:.0f} bytes a job beyond its payload"


def test_nodes_are_listed_while_they_renew_and_forgotten_after(
    settings: Settings, store: WorkerStore
) -> None:
    store.announce("one", "parent", {"models": {MODEL: ["a-task"]}}, ttl_s=60)
    store.announce("one", "child", {"models": {MODEL: {"status": "running"}}}, ttl_s=60)
    store.announce("brief", "parent", {"models": {}}, ttl_s=0.05)
    time.sleep(0.1)
    (node,) = run(settings, lambda async_store: async_store.nodes())
    state = node.state_of(MODEL)
    assert (node.name, list(node.models)) == ("one", [MODEL])
    assert state is not None
    assert state.document == {"status": "running"}
    store.retire("one")
    assert run(settings, lambda async_store: async_store.nodes()) == []
