"""``Job`` and its methods: waiting, events, canceling, deleting, running again."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from modelmill.client import (
    AsyncClient,
    AuthenticationError,
    Client,
    Event,
    InvalidRequestError,
    Job,
    JobCanceledError,
    JobFailedError,
    JobNotFinishedError,
    JobTimeoutError,
    NotFoundError,
    ServerError,
)
from modelmill.errors import ErrorCode
from modelmill.states import Status
from modelmill.store import WorkerStore
from tests.support.api import finish
from tests.support.client import INPUTS, JOB_ID, TASK, Play, broken_stream, event

RUNNING = {"id": JOB_ID, "status": "running", "task": TASK, "model": "noop"}
COMPLETE = {**RUNNING, "status": "complete", "result": 7}
STARTED = '{"status":"running"}'
ENDED = f'{{"id":"{JOB_ID}","status":"complete","task":"{TASK}","model":"noop","result":7}}'


def test_a_job_that_has_not_ended_has_no_result(client: Client) -> None:
    job = client.submit(TASK, "noop", INPUTS)

    assert not job.has_ended
    assert repr(job) == f"<Job {job.id} {TASK}/noop starting>"
    with pytest.raises(JobNotFinishedError, match=r"is starting.*wait\(\)"):
        _ = job.result


def test_a_job_that_has_ended_has_one(client: Client, store: WorkerStore) -> None:
    job = client.submit(TASK, "noop", INPUTS)
    finish(store)

    assert job.wait(10) is job
    assert (job.status, job.result) == ("complete", {"probabilities": [0.8, 0.2]})
    assert job.document["task"] == TASK
    assert client.job(job.id).result == job.result


def test_a_failed_job_raises_its_own_error(client: Client, store: WorkerStore) -> None:
    job = client.submit(TASK, "noop", INPUTS)
    finish(store, Status.FAILED)

    with pytest.raises(JobFailedError, match=r"^No\.$") as caught:
        _ = job.wait().result

    assert caught.value.code is ErrorCode.INFERENCE_FAILED
    assert (caught.value.job_id, caught.value.deliveries) == (job.id, 1)
    assert caught.value.document["status"] == "failed"
    assert caught.value.status is None


def test_a_job_can_be_canceled(client: Client) -> None:
    job = client.submit(TASK, "noop", INPUTS)

    assert job.cancel().status == "canceled"
    assert job.wait().document["id"] == job.id
    with pytest.raises(JobCanceledError) as caught:
        _ = job.result
    assert (caught.value.code, caught.value.job_id) == (ErrorCode.JOB_CANCELED, job.id)


def test_a_job_that_has_ended_cannot_be_canceled(client: Client, store: WorkerStore) -> None:
    job = client.submit(TASK, "noop", INPUTS)
    finish(store)

    with pytest.raises(InvalidRequestError) as refused:
        job.cancel()
    assert (refused.value.code, refused.value.status) == (ErrorCode.JOB_NOT_CANCELABLE, 409)


def test_waiting_ends_when_the_time_is_over(client: Client) -> None:
    job = client.submit(TASK, "noop", INPUTS)

    with pytest.raises(TimeoutError, match=rf"job {job.id} is still starting after 0\.05 s") as caught:
        job.wait(timeout_s=0.05)
    assert isinstance(caught.value, JobTimeoutError)
    with pytest.raises(TimeoutError):
        client.run(TASK, "noop", INPUTS, timeout_s=0.05)
    assert job.refresh().status == "starting"


def test_a_deleted_job_is_gone(client: Client) -> None:
    job = client.submit(TASK, "noop", INPUTS)

    job.delete()

    with pytest.raises(NotFoundError) as caught:
        job.refresh()
    assert caught.value.code is ErrorCode.JOB_NOT_FOUND
    with pytest.raises(NotFoundError):
        job.wait()
    with pytest.raises(NotFoundError):
        list(job.events())


def test_a_job_can_be_run_again(client: Client, store: WorkerStore) -> None:
    job = client.submit(TASK, "noop", INPUTS)
    finish(store)

    again = job.wait().rerun()

    assert again.id != job.id
    assert (again.task, again.model, again.status) == (TASK, "noop", "starting")
    finish(store)
    assert again.wait().result == job.result


def test_jobs_are_listed_page_by_page(client: Client) -> None:
    rows = [INPUTS | {"tags": ["odd" if number % 2 else "even"]} for number in range(5)]
    submitted = [client.submit(TASK, "noop", row) for row in rows]
    ids = [job.id for job in reversed(submitted)]
    submitted[0].cancel()

    assert [job.id for job in client.jobs()] == ids
    assert [job.id for job in client.jobs(limit=2)] == ids[:2]
    assert [job.id for job in client.jobs(tag="odd")] == ids[1::2]
    assert [job.id for job in client.jobs(status="canceled", task=TASK, model="noop")] == [submitted[0].id]
    assert list(client.jobs(model="conse-lite0")) == []


def test_a_listed_job_has_its_result_when_it_was_read(client: Client, store: WorkerStore) -> None:
    client.submit(TASK, "noop", INPUTS)
    finish(store)

    [job] = client.jobs()

    assert job.status == "complete"
    with pytest.raises(JobNotFinishedError, match="refresh"):
        _ = job.result
    assert job.wait().result == {"probabilities": [0.8, 0.2]}


def kinds(events: list[Event]) -> list[str]:
    return [event.type for event in events]


def test_events_of_a_job_come_until_its_end(client: Client, store: WorkerStore) -> None:
    job = client.submit(TASK, "noop", INPUTS)
    with ThreadPoolExecutor(1) as pool:
        received = pool.submit(lambda: list(client.job(job.id).events()))
        finish(store)
        events = received.result(timeout=10)

    assert kinds(events) == ["started", "ended"]
    assert events[-1].data["result"] == {"probabilities": [0.8, 0.2]}
    assert all(event.id for event in events)
    assert kinds(list(job.events(last_event_id=events[0].id))) == ["ended"]
    assert job.status == "complete"
    assert list(job.events(last_event_id=events[-1].id)) == []


def test_events_are_awaited_too(client: Client, store: WorkerStore, api: httpx.Client) -> None:
    job_id = client.submit(TASK, "noop", INPUTS).id

    async def follow() -> list[Event]:
        async with AsyncClient(str(api.base_url)) as asking:
            job = await asking.job(job_id)
            finish(store)
            return [event async for event in job.events()]

    assert kinds(asyncio.run(follow())) == ["started", "ended"]


def test_waiting_for_long_listens_to_events(client: Client, store: WorkerStore) -> None:
    job = client.submit(TASK, "noop", INPUTS)
    paths: list[str] = []
    listening = threading.Event()

    def note(request: httpx.Request) -> None:
        paths.append(request.url.path)
        listening.set()

    client._wire.http.event_hooks["request"].append(note)
    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(job.wait)
        assert listening.wait(5)
        finish(store)
        assert waited.result(timeout=10).status == "complete"

    assert paths == [f"/api/jobs/{job.id}/events"]


def streams(*answers: Response) -> Callable[[Request], Response]:
    """Answers requests for events with these answers in turn, and requests for the job as running."""
    left = iter(answers)
    return lambda request: next(left) if request.url.path.endswith("/events") else JSONResponse(RUNNING)


def job_of(client: Client) -> Job:
    return client.job(JOB_ID)


def test_a_stream_that_breaks_off_is_taken_up_where_it_stopped(play: Play) -> None:
    played = play(
        streams(
            broken_stream(b"retry: 1\n\n", event("1", "started", STARTED), b"id: 2\nevent: pro"),
            Response("", 502),
            broken_stream(b": keep-alive\n\n"),
            broken_stream(
                event("2", "progress", '{"done":1,"total":2,"unit":"items"}'), event("3", "x", "no")
            ),
            StreamingResponse(iter([event("4", "ended", ENDED), b"never"]), media_type="text/event-stream"),
        )
    )
    with Client(played.url) as client:
        job = job_of(client)
        events = list(job.events())

    assert [event.id for event in events] == ["1", "2", "4"]
    assert kinds(events) == ["started", "progress", "ended"]
    asked = [headers.get("last-event-id") for _, _, headers, _ in played.seen[1:]]
    assert asked == [None, "1", "1", "1", "3"]
    assert job.result == 7


def test_the_same_for_who_awaits(play: Play) -> None:
    played = play(
        streams(
            broken_stream(b"retry: 1\n\n", event("1", "started", STARTED)),
            StreamingResponse(iter([event("2", "ended", ENDED)]), media_type="text/event-stream"),
        )
    )

    async def follow() -> list[str]:
        async with AsyncClient(played.url) as client:
            job = await client.job(JOB_ID)
            return [event.id async for event in job.events()]

    assert asyncio.run(follow()) == ["1", "2"]
    assert played.seen[-1][2]["last-event-id"] == "1"


def test_a_stream_that_cannot_be_opened_is_given_up_in_the_end(play: Play) -> None:
    played = play(streams(*[Response("", 503)] * 9))

    with Client(played.url, max_retries=2) as client, pytest.raises(ServerError):
        list(job_of(client).events())

    assert len(played.seen) == 4


@pytest.mark.parametrize("status", [404, 405, 200])
def test_a_server_without_events_is_polled(play: Play, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmill.client.jobs.POLL_S", 0.02)
    progress = {**RUNNING, "started_at": "now", "deliveries": 1, "progress": {"done": 1, "total": 2}}
    left = iter([RUNNING, RUNNING, progress, progress, COMPLETE, COMPLETE])

    def answer(request: Request) -> Response:
        if request.url.path.endswith("/events"):
            return JSONResponse({"code": "not_found", "detail": "No."}, status)
        return JSONResponse(next(left))

    played = play(answer)
    with Client(played.url) as client:
        job = job_of(client)
        events = list(job.events())
        assert job.wait().result == 7

    assert kinds(events) == ["started", "progress", "ended"]
    assert [path for path in played.paths if "events" in path] == [f"GET /api/jobs/{JOB_ID}/events"]


def test_waiting_falls_back_to_asking_again(play: Play) -> None:
    left = iter([RUNNING, RUNNING, RUNNING, COMPLETE])

    def answer(request: Request) -> Response:
        return Response(status_code=404) if "events" in request.url.path else JSONResponse(next(left))

    played = play(answer)
    with Client(played.url) as client:
        assert job_of(client).wait().result == 7

    asked = [headers.get("prefer") for _, path, headers, _ in played.seen if "events" not in path]
    assert asked == [None, "wait=20", "wait=20", "wait=20"]
    assert len(played.seen) == 5


def test_waiting_survives_streams_that_break_off(play: Play) -> None:
    left = iter([broken_stream(b": hello\n\n"), Response("", 503), broken_stream(event("1", "ended", ENDED))])
    played = play(lambda request: next(left) if "events" in request.url.path else JSONResponse(RUNNING))

    with Client(played.url) as client:
        assert job_of(client).wait(100).result == 7


def test_a_stream_of_comments_does_not_outlast_the_time(play: Play, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("modelmill.client.flows.ASK_WAIT_S", 0.1)

    async def comments() -> AsyncIterator[bytes]:
        while True:
            yield b": keep-alive\n\n"
            await asyncio.sleep(0.02)

    def answer(request: Request) -> Response:
        if "events" in request.url.path:
            return StreamingResponse(comments(), media_type="text/event-stream")
        return JSONResponse(RUNNING)

    played = play(answer)
    with Client(played.url) as client, pytest.raises(JobTimeoutError):
        job_of(client).wait(0.4)


def test_who_may_not_listen_is_told(play: Play) -> None:
    denied = JSONResponse({"code": "unauthenticated", "detail": "No key."}, 401)
    played = play(lambda request: denied if "events" in request.url.path else JSONResponse(RUNNING))

    with Client(played.url) as client:
        with pytest.raises(AuthenticationError):
            list(job_of(client).events())
        with pytest.raises(AuthenticationError):
            job_of(client).wait()


def test_leaving_events_early_closes_the_stream(client: Client, store: WorkerStore) -> None:
    job = client.submit(TASK, "noop", INPUTS)
    finish(store)

    for first in job.events():
        assert first.type == "started"
        break

    assert job.wait().result == {"probabilities": [0.8, 0.2]}
