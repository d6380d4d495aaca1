"""Drains that linger at an empty queue: the next job wakes them instead of a bell, and other work ends
the wait."""

from __future__ import annotations

import threading
import time
import uuid

import pytest
import redis

from modelmill.settings import Settings
from modelmill.store import ClaimReply, ClaimRequest, Wake, WorkerStore, keys
from tests.support.store import MODEL, run, submission


def linger(store: WorkerStore, node: str = "node", model: str = MODEL) -> ClaimReply:
    return store.claim(ClaimRequest(model, uuid.uuid4().hex, node, 10, 10**9, linger_s=1.0))


def bells(settings: Settings, count: int = 1, model: str = MODEL, bell_every: int = 16) -> list[bool]:
    """Submits, and returns for each job whether a bell is due."""

    async def act(store: object) -> list[bool]:
        jobs = [submission(model=model, bell_every=bell_every) for _ in range(count)]
        return [(await store.submit(job)).bell for job in jobs]  # type: ignore[attr-defined]

    return run(settings, act)


def test_a_job_wakes_the_drain_that_lingers_instead_of_a_bell(settings: Settings, store: WorkerStore) -> None:
    assert linger(store).jobs == ()
    assert bells(settings, 2) == [False, False]
    assert store.linger("node", 0.01) is Wake.GO
    assert store.linger("node", 0.01) is None
    # The job counted on this node, so it must claim once more before it leaves.
    assert store.stop_lingering(MODEL, "node") is False
    assert len(linger(store).jobs) == 2


def test_a_drain_that_waits_is_woken_at_once(settings: Settings, store: WorkerStore) -> None:
    linger(store)
    woken: list[tuple[Wake | None, float]] = []

    def wait() -> None:
        woken.append((store.linger("node", 10), time.monotonic()))

    thread = threading.Thread(target=wait)
    thread.start()
    bells(settings)
    submitted_at = time.monotonic()
    thread.join(timeout=10)
    assert woken[0][0] is Wake.GO
    assert woken[0][1] - submitted_at < 2


def test_a_claim_that_finds_jobs_does_not_linger(settings: Settings, store: WorkerStore) -> None:
    assert bells(settings) == [True]
    assert len(linger(store).jobs) == 1
    assert bells(settings) == [False], "a bell was sent within five seconds, and no drain lingers"
    assert store.linger("node", 0.01) is None


def test_one_that_left_is_not_counted_on(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    linger(store)
    assert store.stop_lingering(MODEL, "node") is True
    assert not raw_redis.exists(keys.IDLE + MODEL, keys.LINGERING)
    assert bells(settings) == [True]


def test_each_batchful_wakes_another(settings: Settings, store: WorkerStore) -> None:
    for node in ("a", "b"):
        linger(store, node)
    assert bells(settings, 6, bell_every=2) == [False, False, False, True, False, True]
    assert {store.linger(node, 0.01) for node in ("a", "b")} == {Wake.GO}


def test_a_bell_for_another_model_sends_lingering_drains_away(settings: Settings, store: WorkerStore) -> None:
    linger(store)
    assert bells(settings, model="other") == [True]
    assert store.linger("node", 0.01) is Wake.LEAVE
    assert store.stop_lingering(MODEL, "node") is True


def test_sent_away_and_woken_it_looks_once_more(settings: Settings, store: WorkerStore) -> None:
    linger(store)
    store.send_away("node")
    assert bells(settings) == [False]
    assert store.linger("node", 0.01) is Wake.LEAVE
    assert store.stop_lingering(MODEL, "node") is False


@pytest.mark.parametrize(("served", "lingers"), [(("other", MODEL), False), ((MODEL, "another"), True)])
def test_no_drain_lingers_while_jobs_wait_for_another_model_of_the_node(
    settings: Settings, store: WorkerStore, served: tuple[str, ...], lingers: bool
) -> None:
    # Its bell was sent before, and waits in the broker for this node to be free.
    assert bells(settings, model="other") == [True]
    found = store.claim(ClaimRequest(MODEL, uuid.uuid4().hex, "node", 10, 10**9, linger_s=1.0, served=served))
    assert (found.jobs, found.lingers) == ((), lingers)
    assert bells(settings) == [not lingers]


def test_calls_from_before_do_not_count(settings: Settings, store: WorkerStore) -> None:
    store.send_away("node")
    linger(store)
    assert store.linger("node", 0.01) is None


@pytest.mark.parametrize("lingers", [True, False])
def test_the_reaper_wakes_or_rings_for_jobs_that_came_back(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis, lingers: bool
) -> None:
    bells(settings)
    raw_redis.delete(keys.BELL_SENT + MODEL)
    if lingers:
        # As after a claim of a dead node was returned while this one lingered.
        raw_redis.sadd(keys.IDLE + MODEL, "node")
    assert store.reap().bells == (() if lingers else (MODEL,))
    assert store.linger("node", 0.01) == (Wake.GO if lingers else None)


def test_one_that_died_is_forgotten(settings: Settings, store: WorkerStore, raw_redis: redis.Redis) -> None:
    linger(store)
    assert 0 < raw_redis.pttl(keys.IDLE + MODEL) <= 2000
    bells(settings)
    assert 0 < raw_redis.pttl(keys.WAKE + "node") <= 2000
    # The wake was lost with it: the next turn of the reaper rings.
    assert store.reap().bells == (MODEL,)
