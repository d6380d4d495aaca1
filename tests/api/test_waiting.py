"""Waiting instead of polling, over real sockets; the store plays the worker."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import redis

from modelmill.client import Client
from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import ClaimRequest, Outcome, WorkerStore, keys
from modelmill_api.waiting import preferred_wait
from modelmill_tasks.shared.examples import CAT
from tests.support.api import BODY, RESULT, TASK, finish, submit, waiting
from tests.support.processes import wait_until
from tests.support.servers import ApiServer, Valkey, api_process


@contextmanager
def in_background(call: Callable[[], httpx.Response]) -> Iterator[Future[httpx.Response]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call)


@pytest.mark.parametrize(
    ("part", "body", "result"),
    [("", BODY, RESULT), ("/batched", {"image": [CAT, CAT], "classes": ["cat"]}, b"[{},{}]")],
)
def test_a_submit_that_waits_is_answered_with_the_job(
    api: httpx.Client, store: WorkerStore, part: str, body: dict[str, Any], result: bytes
) -> None:
    def call() -> httpx.Response:
        return api.post(f"{TASK}{part}/noop/jobs", json=body, headers={"Prefer": "wait=20"})

    with in_background(call) as answer:
        wait_until(lambda: waiting(api) == 1)
        started = time.monotonic()
        (job_id,) = finish(store, result=result)
        response = answer.result()
    assert time.monotonic() - started < 2
    assert response.status_code == 200
    assert response.headers["preference-applied"] == "wait=20"
    assert response.headers["location"] == f"{TASK}{part}/jobs/{job_id}"
    assert response.json() == api.get(response.headers["location"]).json()
    assert (response.json()["id"], response.json()["status"]) == (job_id, "complete")


def test_a_submit_whose_job_does_not_end_in_time_is_accepted_as_ever(api: httpx.Client) -> None:
    started = time.monotonic()
    response = api.post(f"{TASK}/noop/jobs", json=BODY, headers={"Prefer": "respond-async, wait=1"})
    assert 1 <= time.monotonic() - started < 3
    assert response.status_code == 202
    assert response.json().keys() == {"id", "status"}
    assert response.headers["preference-applied"] == "wait=1"
    assert response.headers["location"].endswith(response.json()["id"])


@pytest.mark.parametrize("address", [f"{TASK}/jobs/", "/api/jobs/"])
@pytest.mark.parametrize("status", [Status.COMPLETE, Status.FAILED, Status.CANCELED])
def test_a_read_is_answered_the_moment_the_job_ends(
    api: httpx.Client, store: WorkerStore, address: str, status: Status
) -> None:
    job_id = submit(api)
    with in_background(lambda: api.get(address + job_id, headers={"Prefer": "wait=20"})) as answer:
        wait_until(lambda: waiting(api) == 1)
        started = time.monotonic()
        if status is Status.CANCELED:
            api.post(f"{TASK}/jobs/{job_id}/cancel").raise_for_status()
        else:
            finish(store, status)
        response = answer.result()
    assert time.monotonic() - started < 2
    assert (response.status_code, response.json()["status"]) == (200, status)
    assert response.headers["preference-applied"] == "wait=20"
    assert waiting(api) == 0


def test_a_read_whose_job_does_not_end_in_time_says_where_it_stands(
    api: httpx.Client, store: WorkerStore
) -> None:
    job_id = submit(api)
    with in_background(lambda: api.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=1"})) as answer:
        started = time.monotonic()
        wait_until(lambda: waiting(api) == 1)
        store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9))
        response = answer.result()
    assert 0.9 <= time.monotonic() - started < 3
    assert (response.json()["status"], response.headers["retry-after"]) == ("running", "1")
    assert response.headers["preference-applied"] == "wait=1"


def test_an_ended_or_unknown_job_is_not_waited_for(api: httpx.Client, store: WorkerStore) -> None:
    job_id = submit(api)
    finish(store)
    started = time.monotonic()
    ended = api.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=600"})
    assert (ended.json()["status"], ended.headers["preference-applied"]) == ("complete", "wait=60")
    assert api.get(f"/api/jobs/{uuid.uuid4()}", headers={"Prefer": "wait=20"}).status_code == 404
    assert api.get("/api/jobs/%F0%9F%90%88", headers={"Prefer": "wait=20"}).status_code == 404
    elsewhere = api.get(f"/api/tasks/text-embedding/jobs/{job_id}", headers={"Prefer": "wait=20"})
    assert elsewhere.status_code == 404
    assert time.monotonic() - started < 2


def test_a_replayed_submit_waits_for_the_first_job(api: httpx.Client, store: WorkerStore) -> None:
    headers = {"Idempotency-Key": "mine"}
    job_id = api.post(f"{TASK}/noop/jobs", json=BODY, headers=headers).json()["id"]
    finish(store)
    again = api.post(f"{TASK}/noop/jobs", json=BODY, headers=headers | {"Prefer": "wait=20"})
    assert (again.status_code, again.json()["id"], again.json()["status"]) == (200, job_id, "complete")


def test_no_end_is_missed_while_a_waiter_registers(api: httpx.Client, store: WorkerStore) -> None:
    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            finish(store)

    worker = threading.Thread(target=work)
    worker.start()
    try:
        for _ in range(100):
            started = time.monotonic()
            response = api.post(f"{TASK}/noop/jobs", json=BODY, headers={"Prefer": "wait=20"})
            assert response.json()["status"] == "complete"
            assert time.monotonic() - started < 5
    finally:
        stop.set()
        worker.join()


def test_two_hundred_waiters_share_one_subscription_and_ask_redis_nothing(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    def reads() -> int:
        stats = raw_redis.info("commandstats")
        return int(stats.get("cmdstat_hgetall", {}).get("calls", 0))

    async def main(job_ids: list[str]) -> list[httpx.Response]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=api.base_url, limits=limits, timeout=60) as client:
            calls = [
                asyncio.create_task(client.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=50"}))
                for job_id in job_ids * 2
            ]
            await asyncio.to_thread(wait_until, lambda: waiting(api) == 200)
            before = reads()
            await asyncio.sleep(1)
            assert reads() == before
            assert len(raw_redis.client_list(_type="pubsub")) == 1
            subscribers: Any = cast("Any", raw_redis).pubsub_numsub(keys.ENDED_CHANNEL)
            assert subscribers == [(keys.ENDED_CHANNEL.encode(), 1)]
            await asyncio.to_thread(finish, store)
            return await asyncio.gather(*calls)

    job_ids = [submit(api) for _ in range(100)]
    responses = asyncio.run(main(job_ids))
    assert [response.json()["id"] for response in responses] == job_ids * 2
    assert {response.json()["status"] for response in responses} == {"complete"}
    assert waiting(api) == 0


def test_a_client_that_leaves_waits_no_more(api: httpx.Client) -> None:
    job_id = submit(api)
    for method, path, body in (("GET", f"/api/jobs/{job_id}", None), ("POST", f"{TASK}/noop/jobs", BODY)):
        with pytest.raises(httpx.ReadTimeout):
            api.request(method, path, json=body, headers={"Prefer": "wait=50"}, timeout=0.5)
        wait_until(lambda: waiting(api) == 0, timeout_s=5)


@pytest.fixture
def own_api(own_valkey: Valkey, settings: Settings) -> Iterator[httpx.Client]:
    with (
        ApiServer(settings.model_copy(update={"redis_url": own_valkey.url})) as server,
        httpx.Client(base_url=server.url, timeout=60) as client,
    ):
        yield client


def test_a_waiter_outlives_a_restart_of_redis(
    own_valkey: Valkey, own_api: httpx.Client, settings: Settings
) -> None:
    early, late = submit(own_api), submit(own_api)
    with (
        in_background(lambda: own_api.get(f"/api/jobs/{early}", headers={"Prefer": "wait=50"})) as first,
        in_background(lambda: own_api.get(f"/api/jobs/{late}", headers={"Prefer": "wait=50"})) as second,
    ):
        wait_until(lambda: waiting(own_api) == 2)
        own_valkey.stop()
        time.sleep(0.5)
        own_valkey.start()
        store = WorkerStore(settings.model_copy(update={"redis_url": own_valkey.url}))
        # The job may end before the API has subscribed again. Then the API gets no news and must read.
        (job,) = store.claim(ClaimRequest("noop", "f1", "node", 1, 10**9)).jobs
        store.settle([Outcome(job.id, job.fence, Status.COMPLETE, RESULT)])
        assert first.result(timeout=20).json()["status"] == "complete"
        finish(store)
        assert second.result(timeout=20).json()["status"] == "complete"
        store.close()


def test_a_silent_subscription_is_kept_and_a_broken_one_replaced(
    settings: Settings, raw_redis: redis.Redis, store: WorkerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def subscriber() -> list[str]:
        return [client["id"] for client in raw_redis.client_list(_type="pubsub")]

    monkeypatch.setattr("modelmill.store.news.SILENCE_S", 0.05)
    server = ApiServer(settings)
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            before = subscriber()
            assert len(before) == 1
            pings = int(raw_redis.info("commandstats").get("cmdstat_ping", {}).get("calls", 0))
            wait_until(lambda: raw_redis.info("commandstats")["cmdstat_ping"]["calls"] > pings + 4)
            assert subscriber() == before
            job_id = submit(client)
            with in_background(
                lambda: client.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=20"})
            ) as answer:
                wait_until(lambda: waiting(client) == 1)
                raw_redis.client_kill_filter(_id=before[0])
                finish(store)
                assert answer.result(timeout=10).json()["status"] == "complete"
            wait_until(lambda: subscriber() not in ([], before))
    finally:
        server.close()


def test_a_wait_through_an_outage_loses_no_accepted_job(own_valkey: Valkey, own_api: httpx.Client) -> None:
    job_id = submit(own_api)

    def wait_on_submit() -> httpx.Response:
        return own_api.post(f"{TASK}/noop/jobs", json=BODY, headers={"Prefer": "wait=2"})

    with (
        in_background(wait_on_submit) as submitted,
        in_background(lambda: own_api.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=2"})) as read,
    ):
        wait_until(lambda: waiting(own_api) == 2)
        own_valkey.stop()
        assert submitted.result().status_code == 202
        assert (read.result().status_code, read.result().json()["code"]) == (503, "store_unavailable")
    own_valkey.start()
    assert own_api.get(submitted.result().headers["location"]).json()["status"] == "starting"


def test_an_api_that_started_without_redis_subscribes_when_it_comes(
    own_valkey: Valkey, settings: Settings
) -> None:
    own_valkey.stop()
    server = ApiServer(settings.model_copy(update={"redis_url": own_valkey.url}))
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            assert client.get("/health/live").status_code == 200
            own_valkey.start()
            job_id = submit(client)
            with in_background(
                lambda: client.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=20"})
            ) as answer:
                store = WorkerStore(settings.model_copy(update={"redis_url": own_valkey.url}))
                finish(store)
                store.close()
                assert answer.result(timeout=10).json()["status"] == "complete"
    finally:
        server.close()


def test_an_api_that_stops_answers_those_who_wait(settings: Settings, tmp_path: Path) -> None:
    with api_process(settings, tmp_path) as (process, url):
        with httpx.Client(base_url=url, timeout=60) as client:
            job_id = submit(client)
            with in_background(
                lambda: client.get(f"/api/jobs/{job_id}", headers={"Prefer": "wait=50"})
            ) as answer:
                wait_until(lambda: waiting(client) == 1)
                process.send_signal(signal.SIGTERM)
                response = answer.result(timeout=5)
        assert (response.status_code, response.json()["status"]) == (200, "starting")
        process.wait(timeout=5)
        # After it has stopped in order, uvicorn ends by the signal that it received.
        assert process.returncode in (0, -signal.SIGTERM), (tmp_path / "api.log").read_text()


@pytest.mark.parametrize(
    ("headers", "wait_s"),
    [
        (["wait=5"], 5),
        (["Wait=5"], 5),
        (["wait = 5"], 5),
        (['wait="5"'], 5),
        (["respond-async, wait=5"], 5),
        (["respond-async", "wait=5"], 5),
        (["respond-async;x=1;y, wait=5; z"], 5),
        (['foo="a, wait=7", wait=5'], 5),
        (["wait=5, wait=7"], 5),
        ([", ,wait=5,"], 5),
        (["=broken, wait=5"], 5),
        (["wait=0"], 0),
        (["wait=61"], 60),
        (["wait=" + "9" * 5000], 60),
        (["wait"], None),
        (["wait="], None),
        (['wait=""'], None),
        (["wait=-1"], None),
        (["wait=1.5"], None),
        (["wait=soon"], None),
        (["wait=5 6"], None),
        (["wait=٣"], None),
        (["waiting=5"], None),
        (["respond-async, return=minimal"], None),
        ([""], None),
        ([",;=" * 2000], None),
        (None, None),
    ],
)
def test_preferences_are_read_as_rfc_7240_has_them(headers: list[str] | None, wait_s: int | None) -> None:
    assert preferred_wait(headers) == wait_s


def test_a_long_preference_takes_no_time() -> None:
    long = ["a" + "; " * 30_000 + "@", "a" + ";" * 30_000 + "@", '"\\' * 15_000, "a=" * 20_000]
    long += ["wait" + " " * 60_000 + "@", 'a="' * 20_000]
    # In a process of its own, as an expression that tries again and again cannot be stopped otherwise.
    code = "from modelmill_api.waiting import preferred_wait as read; import sys\n"
    code += "print([read([text, 'wait=9']) for text in eval(sys.stdin.read())])"

    command = [sys.executable, "-c", code]
    done = subprocess.run(command, input=repr(long), capture_output=True, text=True, timeout=60, check=True)

    assert done.stdout == f"{[9] * len(long)}\n"


def test_a_preference_that_is_not_understood_is_ignored(api: httpx.Client) -> None:
    started = time.monotonic()
    for preference in ("wait=soon", "return=minimal", 'wait="5'):
        accepted = api.post(f"{TASK}/noop/jobs", json=BODY, headers={"Prefer": preference})
        read = api.get(accepted.headers["location"], headers={"Prefer": preference})
        assert (accepted.status_code, read.status_code) == (202, 200)
        assert "preference-applied" not in accepted.headers
        assert "preference-applied" not in read.headers
    assert time.monotonic() - started < 2


def test_the_document_of_the_api_shows_the_preference(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    for path, method in (
        (f"{TASK}/{{model}}/jobs", "post"),
        (f"{TASK}/batched/{{model}}/jobs", "post"),
        (f"{TASK}/jobs/{{id}}", "get"),
        (f"{TASK}/batched/jobs/{{id}}", "get"),
        ("/api/jobs/{id}", "get"),
    ):
        assert "prefer" in [parameter["name"] for parameter in paths[path][method]["parameters"]]
    submitted = paths[f"{TASK}/{{model}}/jobs"]["post"]
    assert "requestBody" in submitted
    for status in ("200", "202"):
        assert "Preference-Applied" in submitted["responses"][status]["headers"]


def test_the_client_waits_in_one_request(api: httpx.Client, store: WorkerStore) -> None:
    with Client(str(api.base_url)) as client:
        paths: list[str] = []
        client._wire.http.event_hooks["request"].append(lambda request: paths.append(request.url.path))
        job = client.job(submit(api))
        with ThreadPoolExecutor(1) as pool:
            waited = pool.submit(job.wait, 20)
            wait_until(lambda: waiting(api) == 1)
            finish(store)
            assert waited.result(timeout=5).status == "complete"
        assert paths == [f"/api/jobs/{job.id}"] * 2
