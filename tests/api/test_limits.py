"""Limits of one key: rate, number of jobs, lanes."""

from __future__ import annotations

import re
import uuid

import httpx

from modelmill.states import Lane, Status
from modelmill.store import ClaimRequest, Limits, Outcome, WorkerStore
from tests.support.api import BODY, JOBS, finish
from tests.support.callers import People
from tests.support.processes import wait_until


def rate_limit(response: httpx.Response) -> tuple[int, int]:
    """``r`` and ``t``."""
    match = re.fullmatch(r'"jobs";r=(\d+);t=(\d+)', response.headers["ratelimit"])
    assert match
    return int(match[1]), int(match[2])


def test_a_rate_lets_a_burst_pass_and_then_one_after_the_other(people: People) -> None:
    client = people(limits=Limits(jobs_per_minute=60, burst=2))
    answers = [client.post(JOBS, json=BODY) for _ in range(3)]
    assert [response.status_code for response in answers] == [202, 202, 429]
    assert {response.headers["ratelimit-policy"] for response in answers} == {'"jobs";q=2;w=2'}
    assert [rate_limit(response) for response in answers] == [(1, 1), (0, 1), (0, 1)]
    refused = answers[2]
    assert refused.json()["code"] == "rate_limited"
    assert refused.json()["retryable"] is True
    assert refused.headers["retry-after"] == "1"
    wait_until(lambda: client.post(JOBS, json=BODY).status_code == 202, 5, "the next job's turn")


def test_the_rate_is_that_of_the_whole_minute(people: People) -> None:
    client = people(limits=Limits(jobs_per_minute=60, burst=60))
    first = client.post(JOBS, json=BODY)
    assert first.headers["ratelimit-policy"] == '"jobs";q=60;w=60'
    assert rate_limit(first) == (59, 1)


def test_one_key_does_not_use_up_the_rate_of_another(people: People) -> None:
    slow = Limits(jobs_per_minute=1, burst=1)
    one, two = people("one", limits=slow), people("two", limits=slow)
    assert [client.post(JOBS, json=BODY).status_code for client in (one, two, one)] == [202, 202, 429]
    assert rate_limit(one.post(JOBS, json=BODY)) == (0, 60)


def test_a_repeated_submit_and_a_wrong_one_cost_nothing(people: People) -> None:
    client = people(limits=Limits(jobs_per_minute=1, burst=1))
    assert client.post(JOBS, json={"image": "no", "classes": []}).status_code == 422
    headers = {"Idempotency-Key": "again"}
    first = client.post(JOBS, json=BODY, headers=headers)
    again = client.post(JOBS, json=BODY, headers=headers)
    assert [first.status_code, again.status_code] == [202, 202]
    assert first.json() == again.json()
    assert again.headers["ratelimit-policy"] == '"jobs";q=1;w=60'
    assert "ratelimit" not in again.headers


def test_who_waits_hears_of_the_rate_as_well(people: People, store: WorkerStore) -> None:
    client = people(limits=Limits(jobs_per_minute=60, burst=5))
    waited = client.post(JOBS, json=BODY, headers={"Prefer": "wait=0"})
    assert (waited.status_code, waited.headers["preference-applied"]) == (202, "wait=0")
    assert rate_limit(waited) == (4, 1)


def test_a_key_without_a_rate_hears_nothing_of_rates(people: People) -> None:
    answer = people().post(JOBS, json=BODY)
    assert not {"ratelimit", "ratelimit-policy"} & answer.headers.keys()


def test_only_so_many_jobs_of_a_key_are_open_at_once(people: People, store: WorkerStore) -> None:
    client, other = people("small", limits=Limits(max_jobs=2)), people("other")
    jobs = [client.post(JOBS, json=BODY).json()["id"] for _ in range(2)]
    refused = client.post(JOBS, json=BODY)
    assert (refused.status_code, refused.json()["code"]) == (429, "quota_exceeded")
    assert refused.headers["retry-after"] == "1"
    assert "2 jobs" in refused.json()["detail"]
    assert other.post(JOBS, json=BODY).status_code == 202

    path = f"/api/tasks/zero-shot-image-classification/jobs/{jobs[0]}/cancel"
    assert client.post(path).status_code == 202
    assert [client.post(JOBS, json=BODY).status_code for _ in range(2)] == [202, 429]
    finish(store)
    assert [client.post(JOBS, json=BODY).status_code for _ in range(3)] == [202, 202, 429]
    for job in store.claim(ClaimRequest("noop", uuid.uuid4().hex, "node", 10, 10**9)).jobs:
        error = {"code": "inference_failed", "message": "No.", "retryable": False}
        store.settle([Outcome(job.id, job.fence, Status.FAILED, error=error)])
    assert client.post(JOBS, json=BODY).status_code == 202


def test_a_key_uses_its_lanes_only(people: People) -> None:
    client = people(lanes=frozenset({Lane.NORMAL, Lane.BULK}))
    assert client.post(JOBS, json=BODY).status_code == 202
    assert client.post(JOBS, json=BODY | {"lane": "bulk"}).status_code == 202
    refused = client.post(JOBS, json=BODY | {"lane": "interactive"})
    assert (refused.status_code, refused.json()["code"]) == (403, "lane_not_allowed")
    assert "bulk, normal" in refused.json()["detail"]
