"""How long an idempotency key lives: as long as its job waits, runs or can be read, and a minimum."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from modelmill.settings import Settings
from modelmill.store import ApiStore, SubmitReply, Verdict, WorkerStore, keys
from tests.support.store import claim, complete, run, submission, submit

KEY = keys.IDEMPOTENCY + "anonymous:k"
DAY_MS = 86_400_000


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"result_ttl_s": 86_400, "idempotency_ttl_s": 3600})


def again(settings: Settings, *jobs: Any) -> list[SubmitReply]:
    async def act(store: ApiStore) -> list[SubmitReply]:
        return [answer for answer in await store.submit_many(jobs) if isinstance(answer, SubmitReply)]

    return run(settings, act)


def is_about(left_ms: int, expected_ms: int) -> bool:
    return expected_ms - 60_000 < left_ms <= expected_ms


def test_the_key_of_a_job_that_waits_or_runs_does_not_expire(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission(idempotency_key="k", expires_in_s=10_000))
    waits = raw_redis.pttl(KEY)
    claims = claim(store)
    runs = raw_redis.pttl(KEY)

    (answer,) = again(settings, submission(idempotency_key="k"))

    assert (waits, runs) == (-1, -1)
    assert (answer.verdict, answer.id) == (Verdict.REPLAYED, job_id)
    store.settle(complete(claims))
    assert raw_redis.pttl(KEY) > 0


@pytest.mark.parametrize(
    ("result_ttl_s", "expected_ms"),
    [(None, DAY_MS), (7 * 86_400, 7 * DAY_MS), (60, 3_600_000)],
    ids=["the setting", "a week", "the minimum"],
)
@pytest.mark.parametrize("end", ["complete", "canceled"])
def test_the_key_of_an_ended_job_lives_as_long_as_its_record_and_a_minimum(
    settings: Settings,
    store: WorkerStore,
    raw_redis: redis.Redis,
    result_ttl_s: float | None,
    expected_ms: int,
    end: str,
) -> None:
    # One of many in a request, beside one without a key.
    keyed = submission(idempotency_key="k", result_ttl_s=result_ttl_s)
    answers = again(settings, submission(), keyed)
    if end == "complete":
        store.settle(complete(claim(store)))
    else:
        run(settings, lambda each: each.cancel(keyed.id))

    left_ms = raw_redis.pttl(KEY)

    assert [answer.verdict for answer in answers] == [Verdict.ACCEPTED] * 2
    assert is_about(left_ms, expected_ms)
    assert left_ms >= raw_redis.pttl(keys.JOB + keyed.id) - 1
    assert again(settings, submission(idempotency_key="k"))[0].id == keyed.id


def test_after_its_record_has_expired_a_key_is_free(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission(idempotency_key="k", result_ttl_s=60))
    store.settle(complete(claim(store)))
    raw_redis.delete(keys.JOB + job_id)  # as if a minute had passed

    (answer,) = again(settings, submission(idempotency_key="k"))

    assert (answer.verdict, answer.id != job_id) == (Verdict.ACCEPTED, True)
    assert raw_redis.pttl(KEY) == -1


def test_the_end_of_a_deleted_job_leaves_the_key_to_the_next_job(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (first,) = submit(settings, submission(idempotency_key="k"))
    claims = claim(store)
    run(settings, lambda each: each.delete([first]))
    (second,) = again(settings, submission(idempotency_key="k"))

    store.settle(complete(claims))

    assert second.verdict is Verdict.ACCEPTED
    assert raw_redis.pttl(KEY) == -1
    assert again(settings, submission(idempotency_key="k"))[0].id == second.id


def test_a_job_of_an_earlier_release_keeps_its_key_as_long_as_it_can_be_read(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    (job_id,) = submit(settings, submission(idempotency_key="k"))
    raw_redis.hdel(keys.JOB + job_id, "idem_until_ms")
    raw_redis.pexpire(KEY, 3_600_000)

    store.settle(complete(claim(store)))

    assert is_about(raw_redis.pttl(KEY), DAY_MS)


def test_a_job_without_a_key_costs_no_command_for_one(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    def commands() -> int:
        return int(raw_redis.info("commandstats").get("cmdstat_pexpire", {}).get("calls", 0))

    def of_one_job(**more: Any) -> int:
        before = commands()
        submit(settings, submission(**more))
        store.settle(complete(claim(store)))
        return commands() - before

    assert of_one_job(idempotency_key="k") == of_one_job() + 1
