"""Following a job over a real socket; the store plays the worker."""

from __future__ import annotations

import asyncio
import json
import signal
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import httpx
import pytest
import redis
from httpx_sse import ServerSentEvent, connect_sse
from starlette.types import Message, Scope

from modelmill.settings import Settings
from modelmill.states import Status
from modelmill.store import (
    ApiStore,
    Claimed,
    ClaimRequest,
    Deletion,
    JobNews,
    JobProgress,
    Outcome,
    Released,
    Return,
    WorkerStore,
    keys,
)
from modelmill_api.routes.events import EventStream
from tests.support.api import BODY, RESULT, TASK, finish, submit, waiting
from tests.support.processes import wait_until
from tests.support.servers import ApiServer, Valkey, api_process
from tests.support.store import read_job

BATCHED = {"image": [BODY["image"]] * 3, "classes": ["cat", "dog"]}


def claim(store: WorkerStore) -> Claimed:
    (job,) = store.claim(ClaimRequest("noop", uuid.uuid4().hex, "node", 1, 10**9)).jobs
    return job


def tell(store: WorkerStore, job: Claimed, done: int) -> None:
    """A heartbeat of a worker that generates tokens."""
    store.beat([(job.id, job.fence)], {job.id: JobProgress(done, 64, "tokens")})


def complete(store: WorkerStore, job: Claimed) -> None:
    store.settle([Outcome(job.id, job.fence, Status.COMPLETE, RESULT)])


def address(job_id: str) -> str:
    return f"/api/jobs/{job_id}/events"


def read(
    client: httpx.Client, job_id: str, after: str | None = None, count: int | None = None
) -> list[ServerSentEvent]:
    """The events of a job until the stream ends, or ``count`` have come and the client hangs up."""
    headers = {} if after is None else {"Last-Event-ID": after}
    events: list[ServerSentEvent] = []
    with connect_sse(client, "GET", address(job_id), headers=headers) as stream:
        for event in stream.iter_sse():
            events.append(event)
            if len(events) == count:
                break
    return events


def lines(events: list[ServerSentEvent]) -> list[tuple[str, str, str]]:
    return [(event.id, event.event, event.data) for event in events]


def kinds(events: list[ServerSentEvent]) -> list[str]:
    return [event.event for event in events]


@contextmanager
def following(client: httpx.Client, job_id: str, already: int = 0) -> Iterator[Future[list[ServerSentEvent]]]:
    """Reads in the background. Returns when the API knows that this client follows."""
    with ThreadPoolExecutor(1) as pool:
        events = pool.submit(read, client, job_id)
        wait_until(lambda: waiting(client) == already + 1)
        yield events


def lifetime(api: httpx.Client, store: WorkerStore) -> tuple[str, list[ServerSentEvent]]:
    """A job that was given back once, and how it went."""
    job_id = submit(api)
    first = claim(store)
    tell(store, first, 1)
    store.settle([Released(first.id, first.fence)])
    second = claim(store)
    for done in (2, 3):
        tell(store, second, done)
    complete(store, second)
    return job_id, read(api, job_id)


@pytest.mark.parametrize("part", ["", "/batched"])
def test_a_job_is_followed_from_its_start_to_its_end(
    api: httpx.Client, store: WorkerStore, part: str
) -> None:
    body = BATCHED if part else BODY
    job_id = api.post(f"{TASK}{part}/noop/jobs", json=body).json()["id"]
    with following(api, job_id) as follower:
        job = claim(store)
        if part:
            store.save_parts(job_id, {0: "{}", 2: "{}"})
        else:
            tell(store, job, 12)
        complete(store, job)
        started, progress, ended = follower.result(timeout=5)
    assert (started.event, progress.event, ended.event) == ("started", "progress", "ended")
    document = api.get(f"/api/jobs/{job_id}").json()
    told = {name: document[name] for name in ("id", "started_at", "deliveries")}
    assert started.json() == told | {"status": "running"}
    expected = (2, 3, "items") if part else (12, 64, "tokens")
    assert progress.json() == dict(zip(("done", "total", "unit"), expected, strict=True))
    assert ended.json() == document
    assert document["result"] == json.loads(RESULT)
    wait_until(lambda: waiting(api) == 0)


def test_the_stream_is_one_that_proxies_and_browsers_understand(
    api: httpx.Client, store: WorkerStore
) -> None:
    job_id = submit(api)
    complete(store, claim(store))
    for path in (address(job_id), f"{TASK}/jobs/{job_id}/events"):
        response = api.get(path)
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["cache-control"] == "no-store"
        assert response.headers["x-accel-buffering"] == "no"
        retry, _, text = response.text.partition("\n")
        *blocks, rest = text.split("\n\n")
        assert (retry, len(blocks), rest) == ("retry: 1000", 2, "")
        for block, kind in zip(blocks, ("started", "ended"), strict=True):
            names = [line.partition(": ")[0] for line in block.split("\n")]
            assert names == ["id", "event", "data"]
            assert f"event: {kind}" in block


def test_a_result_with_line_ends_stays_one_line(api: httpx.Client, store: WorkerStore) -> None:
    job_id, job = submit(api), claim(store)
    store.settle([Outcome(job.id, job.fence, Status.COMPLETE, b'{\r\n  "caption": "a\\nb"\r}\n')])
    *_, ended = read(api, job_id)
    assert ended.json()["result"] == {"caption": "a\nb"}


def test_what_happened_before_is_replayed_in_order(api: httpx.Client, store: WorkerStore) -> None:
    _, events = lifetime(api, store)
    assert kinds(events) == ["started", "progress", "log", "log", "progress", "progress", "ended"]
    assert [event.json()["done"] for event in events if event.event == "progress"] == [1, 2, 3]
    assert [event.json()["level"] for event in events if event.event == "log"] == ["warning", "info"]
    ids = [tuple(map(int, event.id.split("-"))) for event in events]
    assert ids == sorted(set(ids))


def test_whoever_comes_back_gets_what_came_since(api: httpx.Client, store: WorkerStore) -> None:
    job_id, events = lifetime(api, store)
    for place, event in enumerate(events[:-1]):
        assert lines(read(api, job_id, after=event.id)) == lines(events[place + 1 :])
    # A browser that gets a 204 does not reconnect.
    response = api.get(address(job_id), headers={"Last-Event-ID": events[-1].id})
    assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize("unknown", ["", "0-0", "x", "1-2-3", "-1", "٣-1", f"{2**64}-0", "9" * 50 + "-1"])
def test_an_id_that_is_none_begins_at_the_beginning(
    api: httpx.Client, store: WorkerStore, unknown: str
) -> None:
    job_id = submit(api)
    complete(store, claim(store))
    with api.stream("GET", address(job_id), headers={b"Last-Event-ID": unknown.encode()}) as response:
        text = response.read().decode()
    assert text.count("event: started") == text.count("event: ended") == 1


def test_the_id_of_an_end_that_was_not_is_no_end(api: httpx.Client, store: WorkerStore) -> None:
    job_id = submit(api)
    job = claim(store)
    (started,) = read(api, job_id, after=f"1-{2**64 - 1}", count=1)
    assert started.event == "started"
    complete(store, job)


def test_hanging_up_after_each_event_loses_and_doubles_nothing(api: httpx.Client, store: WorkerStore) -> None:
    job_id, job = submit(api), claim(store)
    seen: list[ServerSentEvent] = []
    for done in range(1, 11):
        tell(store, job, done)
        if done % 3 == 0:
            # Some have come in the meantime, and some of them are read.
            seen += read(api, job_id, after=seen[-1].id if seen else None, count=2)
    complete(store, job)
    seen += read(api, job_id, after=seen[-1].id)
    assert kinds(seen) == ["started", *["progress"] * 10, "ended"]
    assert [event.json()["done"] for event in seen[1:-1]] == list(range(1, 11))


@pytest.mark.parametrize("end", ["canceled", "failed", "expired"])
def test_a_job_without_a_result_ends_its_stream_too(api: httpx.Client, store: WorkerStore, end: str) -> None:
    job_id = submit(api) if end != "expired" else _expiring(api)
    with following(api, job_id) as follower:
        if end == "canceled":
            api.post(f"{TASK}/jobs/{job_id}/cancel").raise_for_status()
        elif end == "failed":
            job = claim(store)
            error = {"code": "inference_failed", "message": "No.", "retryable": False}
            store.settle([Outcome(job.id, job.fence, Status.FAILED, error=error)])
        events = follower.result(timeout=5)
    # Canceled and expired in the queue: it never started.
    assert kinds(events) == (["started", "ended"] if end == "failed" else ["ended"])
    assert events[-1].json() == api.get(f"/api/jobs/{job_id}").json()
    assert events[-1].json()["status"] == ("canceled" if end == "canceled" else "failed")


def _expiring(api: httpx.Client) -> str:
    response = api.post(f"{TASK}/noop/jobs", json=BODY | {"expires_in": 1})
    return str(response.raise_for_status().json()["id"])


def test_it_is_told_why_a_job_waits_again(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    job_id = submit(api)
    with following(api, job_id) as follower:
        job = claim(store)
        store.settle([Released(job.id, job.fence, Return.SUSPECT)])
        claim(store)
        # Its lease expires, and the API's own reaper returns it.
        wait_until(lambda: raw_redis.exists(keys.REAPER))
        raw_redis.hset(keys.REAPER, "grace_until_ms", 0)
        raw_redis.zadd(keys.LEASES, {job_id: 1})
        wait_until(lambda: (record := read_job(store, job_id)) is not None and record.status == "starting")
        complete(store, claim(store))
        events = follower.result(timeout=5)
    assert kinds(events) == ["started", *["log"] * 4, "ended"]
    messages = [event.json()["message"] for event in events[1:-1]]
    assert "died" in messages[0]
    assert "delivery 2" in messages[1]
    assert "stopped responding" in messages[2]
    assert "delivery 3" in messages[3]


def test_a_quiet_stream_shows_that_it_lives(
    api: httpx.Client, store: WorkerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelmill_api.routes.events.KEEP_ALIVE_S", 0.05)
    job_id = submit(api)
    with api.stream("GET", address(job_id)) as response:
        text = response.iter_lines()
        assert [next(text) for _ in range(3)] == ["retry: 1000", ": keep-alive", ": keep-alive"]
        job = claim(store)
        while "data: " not in next(text):
            continue
        while next(text) != ": keep-alive":
            continue
        complete(store, job)
        assert "event: ended" in list(text)


def test_signs_of_life_are_no_events(
    api: httpx.Client, store: WorkerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelmill_api.routes.events.KEEP_ALIVE_S", 0.01)
    job_id = submit(api)
    with following(api, job_id) as follower:
        for _ in range(3):
            job = claim(store)
            time.sleep(0.05)
            store.settle([Released(job.id, job.fence)])
        complete(store, claim(store))
        events = follower.result(timeout=5)
    assert kinds(events) == ["started", *["log"] * 6, "ended"]


def test_what_cannot_be_followed_is_a_problem_before_the_stream(api: httpx.Client) -> None:
    job_id, batched_id = submit(api), api.post(f"{TASK}/batched/noop/jobs", json=BATCHED).json()["id"]
    for path in (
        address(str(uuid.uuid4())),
        address("%F0%9F%90%88"),
        f"/api/tasks/text-embedding/jobs/{job_id}/events",
        f"{TASK}/batched/jobs/{job_id}/events",
        f"{TASK}/jobs/{batched_id}/events",
    ):
        response = api.get(path)
        assert (response.status_code, response.json()["code"]) == (404, "job_not_found")
    unknown = api.get(f"/api/tasks/nothing/jobs/{job_id}/events")
    assert (unknown.status_code, unknown.json()["code"]) == (404, "task_not_found")


@pytest.mark.parametrize("running", [False, True])
def test_the_stream_of_a_deleted_job_ends_and_then_there_is_none(
    api: httpx.Client, store: WorkerStore, settings: Settings, running: bool
) -> None:
    job_id = submit(api)
    if running:
        claim(store)

    async def delete() -> list[Deletion]:
        async_store = ApiStore(settings)
        verdicts = await async_store.delete([job_id])
        await async_store.close()
        return verdicts

    with following(api, job_id) as follower:
        assert asyncio.run(delete()) == ["deleting" if running else "deleted"]
        assert kinds(follower.result(timeout=5)) == (["started"] if running else [])
    assert api.get(address(job_id)).status_code == 404


def test_a_hundred_followers_share_one_subscription_and_ask_redis_nothing(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    def reads() -> int:
        return int(raw_redis.info("commandstats").get("cmdstat_xrange", {}).get("calls", 0))

    async def follow(client: httpx.AsyncClient, job_id: str) -> str:
        return (await client.get(address(job_id))).text

    async def main(job_ids: list[str]) -> list[str]:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(base_url=api.base_url, limits=limits, timeout=60) as client:
            calls = [asyncio.create_task(follow(client, job_id)) for job_id in job_ids * 2]
            await asyncio.to_thread(wait_until, lambda: waiting(api) == 100)
            await asyncio.to_thread(wait_until, lambda: reads() >= 100)
            before, connections = reads(), len(raw_redis.client_list())
            await asyncio.sleep(0.5)
            assert reads() == before
            assert len(raw_redis.client_list(_type="pubsub")) == 1
            channels = (keys.ENDED_CHANNEL, keys.NEWS_CHANNEL)
            subscribers: Any = cast("Any", raw_redis).pubsub_numsub(*channels)
            assert subscribers == [(channel.encode(), 1) for channel in channels]
            await asyncio.to_thread(finish, store)
            texts = await asyncio.gather(*calls)
            # The background tasks take a connection each from the pool if they run at the same moment.
            assert len(raw_redis.client_list()) <= connections + 10
            return texts

    texts = asyncio.run(main([submit(api) for _ in range(50)]))
    assert all(text.count("event: started") == text.count("event: ended") == 1 for text in texts)
    assert waiting(api) == 0


def test_a_client_that_leaves_is_followed_for_no_more(api: httpx.Client) -> None:
    job_id = submit(api)
    with pytest.raises(httpx.ReadTimeout):
        api.get(address(job_id), timeout=0.3)
    wait_until(lambda: waiting(api) == 0, timeout_s=5)


def test_a_stream_outlives_a_restart_of_redis(
    own_valkey: Valkey, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelmill_api.routes.events.RETRY_S", 0.2)
    settings = settings.model_copy(update={"redis_url": own_valkey.url, "lease_s": 30.0})
    server, store = ApiServer(settings), WorkerStore(settings)
    try:
        with httpx.Client(base_url=server.url, timeout=60) as client:
            job_id, job = submit(client), claim(store)
            with following(client, job_id) as follower:
                tell(store, job, 1)
                own_valkey.stop()
                assert client.get(address(job_id)).status_code == 503
                own_valkey.start()
                # The API may not have subscribed again yet. Then it gets no news, and has to read the record.
                tell(store, job, 2)
                complete(store, job)
                events = follower.result(timeout=20)
        assert kinds(events) == ["started", "progress", "progress", "ended"]
        assert [event.json()["done"] for event in events[1:3]] == [1, 2]
    finally:
        store.close()
        server.close()


def test_a_broken_subscription_is_made_up_for(
    api: httpx.Client, store: WorkerStore, raw_redis: redis.Redis
) -> None:
    job_id = submit(api)
    with following(api, job_id) as follower:
        (subscriber,) = raw_redis.client_list(_type="pubsub")
        raw_redis.client_kill_filter(_id=subscriber["id"])
        job = claim(store)
        tell(store, job, 1)
        wait_until(lambda: raw_redis.client_list(_type="pubsub"))
        complete(store, job)
        assert kinds(follower.result(timeout=5)) == ["started", "progress", "ended"]


def test_a_slow_client_is_read_for_only_when_it_has_taken_the_last(
    settings: Settings, store: WorkerStore, raw_redis: redis.Redis, api: httpx.Client
) -> None:
    """The client stops reading in the middle while much happens, and the API stores none of that for it."""
    job_id = submit(api)
    job = claim(store)
    sent: list[bytes] = []

    def reads() -> int:
        return int(raw_redis.info("commandstats")["cmdstat_xrange"]["calls"])

    async def main() -> None:
        async_store = ApiStore(settings)
        watch = JobNews(settings, async_store)
        await watch.start()
        state = cast("Any", SimpleNamespace(store=async_store, news=watch))
        may_go, stands = asyncio.Event(), asyncio.Event()

        async def receive() -> Message:
            await asyncio.Event().wait()
            raise AssertionError

        async def send(message: Message) -> None:
            sent.append(message.get("body", b""))
            if b"event: started" in sent[-1]:
                stands.set()
                await may_go.wait()

        async def read_record() -> Any:
            return await async_store.get(job_id)

        scope: Scope = {"type": "http", "method": "GET"}
        stream = asyncio.create_task(EventStream(state, job_id, "", read_record)(scope, receive, send))
        await stands.wait()
        before = reads()
        for done in range(1, 51):
            await asyncio.to_thread(tell, store, job, done)
        await asyncio.to_thread(complete, store, job)
        assert (reads(), len(sent)) == (before, 3)
        may_go.set()
        async with asyncio.timeout(5):
            await stream
        await watch.close()
        await async_store.close()

    asyncio.run(main())
    text = b"".join(sent).decode()
    assert [json.loads(line[6:])["done"] for line in text.split("\n") if '"done"' in line] == list(
        range(1, 51)
    )
    assert text.count("event: ended") == 1


def test_an_api_that_stops_ends_its_streams(settings: Settings, tmp_path: Path) -> None:
    with api_process(settings, tmp_path) as (process, url):
        with httpx.Client(base_url=url, timeout=60) as client:
            job_id = submit(client)
            with following(client, job_id) as follower:
                started = time.monotonic()
                process.send_signal(signal.SIGTERM)
                # The answer ends in order; a broken connection would raise here.
                assert follower.result(timeout=5) == []
        # Before uvicorn would have closed the remaining connections.
        process.wait(timeout=10)
        assert time.monotonic() - started < 9


def test_streams_count_as_waiting_and_not_as_slow(api: httpx.Client, store: WorkerStore) -> None:
    job_id = submit(api)
    with following(api, job_id) as follower:
        complete(store, claim(store))
        follower.result(timeout=5)
    route = f'route="{TASK}/jobs/{{id}}/events"'
    assert api.get(f"{TASK}/jobs/{job_id}/events").status_code == 200
    metrics = api.get("/metrics").text.splitlines()
    counted = [line for line in metrics if line.startswith("modelmill_http_requests_total") and route in line]
    assert [line.split()[1] for line in counted] == ["1.0"]
    timed = [line for line in metrics if "request_seconds_count" in line and "events" in line]
    assert all(line.endswith(" 0.0") for line in timed)


def test_the_document_of_the_api_shows_the_streams(api: httpx.Client) -> None:
    paths = api.get("/openapi.json").json()["paths"]
    operations = set()
    for path in (
        "/api/jobs/{id}/events",
        "/api/tasks/{task}/jobs/{id}/events",
        "/api/tasks/{task}/batched/jobs/{id}/events",
    ):
        operation = paths[path]["get"]
        operations.add(operation["operationId"])
        assert list(operation["responses"]["200"]["content"]) == ["text/event-stream"]
        assert {"200", "204", "404", "503"} <= operation["responses"].keys()
        assert "last-event-id" in [parameter["name"] for parameter in operation["parameters"]]
    assert len(operations) == 3
