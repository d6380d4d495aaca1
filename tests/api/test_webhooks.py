"""Webhooks, sent to a real server over real sockets; the store plays the worker."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import redis
from standardwebhooks import Webhook
from standardwebhooks.webhooks import WebhookVerificationError

from modelmill import processes
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ApiStore, ClaimRequest, JobProgress, Outcome, WorkerStore, keys
from modelmill.store.webhooks import Delivery
from modelmill_api.background.webhooks import SCHEDULE_S, compose
from modelmill_tasks.shared.examples import CAT
from tests.fixtures.receiver import Receiver
from tests.support.api import JOBS, RESULT, finish
from tests.support.processes import wait_until
from tests.support.servers import ApiServer, api_process


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    yield server
    server.close()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"private_networks": "127.0.0.0/8", "webhook_timeout_s": 5.0})


def submit(api: httpx.Client, url: str, *events: str, **more: Any) -> str:
    body: dict[str, Any] = {"image": CAT, "classes": ["cat", "dog"], "webhook": url, **more}
    if events:
        body["webhook_events"] = events
    return str(api.post(JOBS, json=body).raise_for_status().json()["id"])


def hasten(raw_redis: redis.Redis) -> None:
    """Makes the next attempt of every waiting webhook due now."""
    for member in cast("list[bytes]", raw_redis.zrange(keys.OUTBOX, 0, -1)):
        raw_redis.zadd(keys.OUTBOX, {member: 0}, xx=True)
    raw_redis.publish(keys.NEWS_CHANNEL, "- hook")


def secret(api: httpx.Client) -> Webhook:
    return Webhook(api.get("/api/webhooks/secret").raise_for_status().json()["key"])


def log(api: httpx.Client, job_id: str, count: int = 1) -> list[dict[str, Any]]:
    """The attempts, once there are ``count``."""
    found: list[dict[str, Any]] = []

    def is_there() -> bool:
        found[:] = api.get(f"/api/jobs/{job_id}/webhook-deliveries").raise_for_status().json()
        return len(found) >= count

    wait_until(is_there, 10, "the attempt in the log")
    return found


def outbox(raw_redis: redis.Redis) -> list[bytes]:
    return cast("list[bytes]", raw_redis.zrange(keys.OUTBOX, 0, -1))


@pytest.mark.parametrize("status", [Status.COMPLETE, Status.FAILED, Status.CANCELED])
def test_the_end_of_a_job_is_told_and_signed(
    api: httpx.Client, store: WorkerStore, receiver: Receiver, raw_redis: redis.Redis, status: Status
) -> None:
    job_id = submit(api, receiver.url + "?for=me", metadata={"row": 7}, tags=["a"])
    finish(store, status)
    request = receiver.next()
    event = secret(api).verify(request.body, request.headers)
    assert event == request.event
    assert event["type"] == f"job.{status}"
    assert event["data"] == api.get(f"/api/jobs/{job_id}").json()
    assert event["timestamp"] == event["data"]["finished_at"]
    assert event["data"]["metadata"] == {"row": 7}
    assert request.path == "/hook?for=me"
    assert request.headers["content-type"] == "application/json"
    assert request.id == f"msg_{job_id}_ended"
    with pytest.raises(WebhookVerificationError):
        secret(api).verify(request.body + b" ", request.headers)
    (attempt,) = log(api, job_id)
    assert attempt["outcome"] == "delivered"
    assert (attempt["id"], attempt["event"], attempt["attempt"]) == (request.id, "ended", 1)
    assert (attempt["status"], attempt["error"], attempt["next_attempt_at"]) == (204, None, None)
    assert outbox(raw_redis) == []
    # No key lives longer than the job.
    left_ms = [raw_redis.pttl(key + job_id) for key in (keys.JOB, keys.HOOKS, keys.HOOK_LOG)]
    assert max(left_ms) - min(left_ms) < 1000


def test_only_what_was_asked_for_is_told(api: httpx.Client, store: WorkerStore, receiver: Receiver) -> None:
    started = submit(api, receiver.url, "started")
    silent = api.post(JOBS, json={"image": CAT, "classes": ["cat"]}).json()["id"]
    finish(store)
    assert receiver.next().id == f"msg_{started}_started"
    assert api.get(f"/api/jobs/{silent}/webhook-deliveries").json() == []
    assert len(log(api, started)) == 1
    assert receiver.nothing_more()


def test_start_and_progress_are_told_as_they_happen(
    api: httpx.Client, store: WorkerStore, receiver: Receiver
) -> None:
    job_id = submit(api, receiver.url, "started", "progress", "ended")
    (job,) = store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9)).jobs
    started = receiver.next()
    assert (started.id, started.event["type"]) == (f"msg_{job_id}_started", "job.started")
    assert started.event["data"]["status"] == "running"
    for number in (1, 2):
        store.beat([(job.id, "fence")], {job.id: JobProgress(number, 4, "steps")})
        request = receiver.next()
        assert (request.id, request.event["type"]) == (f"msg_{job_id}_progress_{number}", "job.progress")
        assert request.event["data"]["progress"] == {"done": number, "total": 4, "unit": "steps"}
        log(api, job_id, 1 + number)
    store.settle([Outcome(job.id, "fence", Status.COMPLETE, RESULT)])
    assert receiver.next().event["type"] == "job.complete"


def test_a_large_result_is_named_by_its_address(
    api: httpx.Client, store: WorkerStore, receiver: Receiver
) -> None:
    job_id = submit(api, receiver.url)
    finish(store, result=json.dumps({"text": "a" * 70_000}).encode())
    data = receiver.next().event["data"]
    assert "result" not in data
    assert data["result_url"] == f"/api/jobs/{job_id}/result"


def test_what_failed_is_sent_again_the_very_same_until_it_is_given_up(
    api: httpx.Client, store: WorkerStore, receiver: Receiver, raw_redis: redis.Redis
) -> None:
    receiver.status = 500
    job_id = submit(api, receiver.url)
    finish(store)
    requests = [receiver.next()]
    for number, pause_s in enumerate(SCHEDULE_S, start=1):
        *_, attempt = log(api, job_id, number)
        assert (attempt["attempt"], attempt["outcome"], attempt["status"]) == (number, "failed", 500)
        score = cast("float", raw_redis.zscore(keys.OUTBOX, f"{job_id} ended"))
        assert score / 1000 - time.time() == pytest.approx(pause_s, rel=0.11, abs=2)
        hasten(raw_redis)
        requests.append(receiver.next())
    *_, last = log(api, job_id, len(SCHEDULE_S) + 1)
    assert (last["attempt"], last["next_attempt_at"]) == (10, None)
    assert outbox(raw_redis) == []
    assert len({(request.id, request.body) for request in requests}) == 1
    for request in requests:
        secret(api).verify(request.body, request.headers)


def test_a_receiver_that_is_gone_is_told_nothing_more_of_the_job(
    api: httpx.Client, store: WorkerStore, receiver: Receiver, raw_redis: redis.Redis
) -> None:
    receiver.status = 410
    job_id = submit(api, receiver.url, "started", "ended")
    (job,) = store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9)).jobs
    assert receiver.next().event["type"] == "job.started"
    (attempt,) = log(api, job_id)
    assert (attempt["outcome"], attempt["status"], attempt["next_attempt_at"]) == ("gone", 410, None)
    receiver.status = 204
    store.settle([Outcome(job.id, "fence", Status.COMPLETE, RESULT)])
    other = submit(api, receiver.url)
    finish(store)
    assert receiver.next().id == f"msg_{other}_ended"
    wait_until(lambda: outbox(raw_redis) == [])
    assert len(log(api, job_id)) == 1


def test_redirects_are_not_followed(api: httpx.Client, store: WorkerStore, receiver: Receiver) -> None:
    receiver.status = 307
    job_id = submit(api, receiver.url)
    finish(store)
    (attempt,) = log(api, job_id)
    assert (attempt["outcome"], attempt["status"]) == ("failed", 307)
    assert "redirects are not followed" in attempt["error"]
    assert [receiver.next().path] == ["/hook"]
    assert receiver.nothing_more()


def test_where_webhooks_may_not_go_they_are_given_up_at_once(
    settings: Settings, store: WorkerStore, receiver: Receiver, raw_redis: redis.Redis
) -> None:
    with (
        ApiServer(settings.model_copy(update={"private_networks": ""})) as server,
        httpx.Client(base_url=server.url) as api,
    ):
        # A name: only resolving it shows where it leads.
        job_id = submit(api, receiver.url.replace("127.0.0.1", "localhost"))
        finish(store)
        (attempt,) = log(api, job_id)
        assert (attempt["outcome"], attempt["status"], attempt["next_attempt_at"]) == ("refused", None, None)
        assert "127.0.0.1" not in attempt["error"]
        assert outbox(raw_redis) == []
        assert receiver.nothing_more()


def test_a_webhook_that_cannot_be_sent_is_refused_with_its_job(settings: Settings) -> None:
    with (
        ApiServer(settings.model_copy(update={"webhook_hosts": "*.example.com, 10.0.0.1"})) as server,
        httpx.Client(base_url=server.url) as api,
    ):
        for url in (
            "http://10.0.0.1/hook",
            "http://elsewhere.example.org/hook",
            "http://user:secret@app.example.com/hook",
            "http://2130706433/hook",
        ):
            body = {"image": CAT, "classes": ["cat"], "webhook": url}
            problem = api.post(JOBS, json=body)
            assert (problem.status_code, problem.json()["code"]) == (422, "invalid_input")
            assert problem.json()["errors"][0]["field"] == "webhook"
            assert "secret" not in problem.text
        assert api.post(JOBS, json=body | {"webhook": "https://app.example.com/hook"}).status_code == 202


def test_nobody_at_the_address_is_a_failure_that_is_retried(api: httpx.Client, store: WorkerStore) -> None:
    job_id = submit(api, f"http://127.0.0.1:{processes.free_port()}/")
    finish(store)
    (attempt,) = log(api, job_id)
    assert (attempt["outcome"], attempt["status"]) == ("failed", None)
    assert attempt["next_attempt_at"] is not None


def test_retries_go_on_after_the_api_was_killed(
    settings: Settings, store: WorkerStore, receiver: Receiver, raw_redis: redis.Redis, tmp_path: Path
) -> None:
    receiver.status = 503
    with api_process(settings, tmp_path) as (process, url), httpx.Client(base_url=url) as api:
        job_id = submit(api, receiver.url)
        finish(store)
        first = receiver.next()
        log(api, job_id)
        process.kill()
        process.wait()
    receiver.status = 204
    hasten(raw_redis)
    with ApiServer(settings) as server, httpx.Client(base_url=server.url) as api:
        again = receiver.next()
        assert (again.id, again.body) == (first.id, first.body)
        assert [attempt["outcome"] for attempt in log(api, job_id, 2)] == ["failed", "delivered"]


def test_several_processes_send_each_webhook_once(
    settings: Settings, store: WorkerStore, receiver: Receiver, raw_redis: redis.Redis
) -> None:
    with ExitStack() as cleanup:
        servers = [ApiServer(settings) for _ in range(2)]
        for server in servers:
            cleanup.callback(server.close)
        api = cleanup.enter_context(httpx.Client(base_url=servers[0].url))
        ids = [submit(api, receiver.url) for _ in range(40)]
        finish(store)

        def all_sent() -> bool:
            for member in outbox(raw_redis):
                # Webhooks that went back, because many were due for one host, become due at once.
                score = raw_redis.zscore(keys.OUTBOX, member) or 0
                if time.time() < score / 1000 < time.time() + 10:
                    raw_redis.zadd(keys.OUTBOX, {member: 0}, xx=True)
            return receiver.received.qsize() >= len(ids) and not outbox(raw_redis)

        wait_until(all_sent)
        seen = Counter(receiver.next().id for _ in range(receiver.received.qsize()))
        assert seen == Counter(f"msg_{job_id}_ended" for job_id in ids)


def test_a_slow_receiver_does_not_keep_the_others_waiting(
    api: httpx.Client, store: WorkerStore, receiver: Receiver
) -> None:
    slow = Receiver("127.0.0.2")
    slow.going_on.clear()
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: submit(api, slow.url), range(80)))
        finish(store)
        slow.next()
        submit(api, receiver.url)
        finish(store)
        receiver.next(4)
        assert slow.received.qsize() <= 3
    finally:
        slow.close()


def test_a_deleted_job_is_not_told_of(
    api: httpx.Client, store: WorkerStore, receiver: Receiver, raw_redis: redis.Redis
) -> None:
    receiver.status = 500
    job_id = submit(api, receiver.url)
    finish(store)
    receiver.next()
    log(api, job_id)
    asyncio.run(_delete(store, job_id))
    assert outbox(raw_redis) == []
    assert api.get(f"/api/jobs/{job_id}/webhook-deliveries").status_code == 404
    assert not list(raw_redis.scan_iter(f"*{job_id}*"))


def test_secrets_are_made_once_and_can_be_rotated(
    api: httpx.Client, store: WorkerStore, receiver: Receiver, raw_redis: redis.Redis
) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = set(pool.map(lambda _: api.get("/api/webhooks/secret").json()["key"], range(16)))
    (old,) = made
    assert old.startswith("whsec_")
    rotated = api.post("/api/webhooks/secret/rotate")
    assert rotated.headers["cache-control"] == "no-store"
    new = rotated.json()["key"]
    assert (new == old, api.get("/api/webhooks/secret").json()["key"]) == (False, new)
    submit(api, receiver.url)
    finish(store)
    request = receiver.next()
    for key in (old, new):
        Webhook(key).verify(request.body, request.headers)
    raw_redis.hset(keys.HOOK_SECRETS, "anonymous old", f"{int(time.time() * 1000)} {old}")
    submit(api, receiver.url)
    finish(store)
    request = receiver.next()
    Webhook(new).verify(request.body, request.headers)
    with pytest.raises(WebhookVerificationError):
        Webhook(old).verify(request.body, request.headers)


async def _delete(store: WorkerStore, job_id: str) -> None:
    jobs = ApiStore(store._settings)
    assert await jobs.delete([job_id]) == ["deleted"]
    await jobs.close()


def test_the_end_of_a_job_that_is_forgotten_is_told_in_short() -> None:
    delivery = Delivery("j", "ended", 1, "http://a/", "me", 0, 0, "", "failed", "t", "m")
    event = json.loads(compose(delivery, None))
    assert (event["type"], event["data"]) == (
        "job.failed",
        {"id": "j", "status": "failed", "task": "t", "model": "m"},
    )
