"""Which requests are sent again, and when."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from itertools import pairwise

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from modelmill.client import (
    AsyncClient,
    Client,
    ConnectionFailedError,
    InvalidRequestError,
    JobTimeoutError,
    RateLimitError,
    ServerError,
)
from modelmill.client.protocol import Call, RetryPolicy, may_repeat
from modelmill.errors import ErrorCode
from tests.support.client import INPUTS, JOB_ID, TASK, Play, broken_stream

ACCEPTED = {"id": JOB_ID, "status": "starting"}
QUEUE_FULL = {"code": "queue_full", "detail": "Full.", "retryable": True}


@pytest.mark.parametrize("status", [502, 503, 504, 429])
def test_a_submit_is_sent_again_with_the_same_key_and_body(play: Play, status: int) -> None:
    answers = iter([Response("", status), Response("", status), JSONResponse(ACCEPTED, 202)])
    played = play(lambda _: next(answers))

    with Client(played.url) as client:
        assert client.submit(TASK, "noop", INPUTS).id == JOB_ID

    assert len({(headers["idempotency-key"], body) for _, _, headers, body in played.seen}) == 1
    assert len(played.seen) == 3


def test_the_awaiting_client_does_the_same(play: Play) -> None:
    answers = iter([Response("", 503), JSONResponse(ACCEPTED, 202)])
    played = play(lambda _: next(answers))

    async def submit() -> str:
        async with AsyncClient(played.url) as client:
            return (await client.submit(TASK, "noop", INPUTS)).id

    assert asyncio.run(submit()) == JOB_ID
    assert len(played.seen) == 2


def test_after_so_many_times_the_last_answer_is_the_error(play: Play) -> None:
    played = play(lambda _: JSONResponse(QUEUE_FULL, 429))

    with Client(played.url, max_retries=2) as client, pytest.raises(RateLimitError) as caught:
        client.submit(TASK, "noop", INPUTS)

    assert caught.value.code is ErrorCode.QUEUE_FULL
    assert len(played.seen) == 3


def test_an_answer_that_breaks_off_is_asked_for_again(play: Play) -> None:
    answers = iter([broken_stream(b'["a-t', media_type="application/json"), JSONResponse(["a-task"])])
    played = play(lambda _: next(answers))

    with Client(played.url) as client:
        assert client.tasks() == ["a-task"]


def test_an_answer_that_always_breaks_off_is_no_answer(play: Play) -> None:
    played = play(lambda _: broken_stream(b'["a-t', media_type="application/json"))

    with Client(played.url, max_retries=1) as client, pytest.raises(ConnectionFailedError) as caught:
        client.tasks()

    assert caught.value.code is ErrorCode.STORE_UNAVAILABLE
    assert caught.value.status is None
    assert len(played.seen) == 2


@pytest.mark.parametrize(
    "answer",
    [
        JSONResponse({"code": "invalid_input", "detail": "No.", "retryable": False}, 422),
        JSONResponse({"code": "internal", "detail": "No.", "retryable": False}, 500),
        JSONResponse({"code": "expired", "detail": "No.", "retryable": False}, 504),
    ],
    ids=["invalid", "bug", "not retryable"],
)
def test_what_cannot_help_is_not_tried(play: Play, answer: Response) -> None:
    played = play(lambda _: answer)

    with Client(played.url) as client, pytest.raises((InvalidRequestError, ServerError)):
        client.submit(TASK, "noop", INPUTS)

    assert len(played.seen) == 1


def test_the_server_says_when_to_come_back(play: Play) -> None:
    answers = iter([JSONResponse(QUEUE_FULL, 429, {"Retry-After": "1"}), JSONResponse(ACCEPTED, 202)])
    played = play(lambda _: next(answers))
    started = time.monotonic()

    with Client(played.url) as client:
        client.submit(TASK, "noop", INPUTS)

    assert 1.0 <= time.monotonic() - started < 5


@pytest.mark.parametrize("wait", ["3600", "in a while"])
def test_who_asks_for_a_long_pause_is_left_to_the_caller(play: Play, wait: str) -> None:
    asked = formatdate(time.time() + 3600, usegmt=True) if wait == "in a while" else wait
    played = play(lambda _: JSONResponse(QUEUE_FULL, 429, {"Retry-After": asked}))

    with Client(played.url) as client, pytest.raises(RateLimitError) as caught:
        client.submit(TASK, "noop", INPUTS)

    assert caught.value.retry_after_s == pytest.approx(3600, abs=5)
    assert len(played.seen) == 1


def test_nothing_is_tried_again_beyond_the_time_that_a_run_has(play: Play) -> None:
    played = play(lambda _: JSONResponse(QUEUE_FULL, 429, {"Retry-After": "20"}))

    with Client(played.url) as client, pytest.raises(RateLimitError):
        client.run(TASK, "noop", INPUTS, timeout_s=5)

    assert len(played.seen) == 1


def test_a_job_deleted_by_an_attempt_whose_answer_was_lost_is_deleted(play: Play) -> None:
    document = {"id": JOB_ID, "status": "complete", "task": TASK, "model": "noop", "result": 1}
    gone = {"code": "job_not_found", "detail": "No.", "retryable": False}
    answers = iter([JSONResponse(document), Response("", 502), JSONResponse(gone, 404)])
    played = play(lambda _: next(answers))

    with Client(played.url) as client:
        client.job(JOB_ID).delete()

    assert len(played.seen) == 3


def test_a_rerun_whose_answer_was_lost_is_not_done_twice(play: Play) -> None:
    document = {"id": JOB_ID, "status": "complete", "task": TASK, "model": "noop", "result": 1}
    answers = iter([JSONResponse(document), broken_stream(b"{", media_type="application/json")])
    played = play(lambda _: next(answers))

    with Client(played.url) as client, pytest.raises(ConnectionFailedError):
        client.job(JOB_ID).rerun()

    assert len(played.seen) == 2


def test_a_run_that_lost_its_connection_finds_its_job_again(play: Play) -> None:
    done = {"id": JOB_ID, "status": "complete", "result": 7}

    def answer(request: Request) -> Response:
        first = len(played.seen) == 1
        return broken_stream(b"{", media_type="application/json") if first else JSONResponse(done)

    played = play(answer)
    with Client(played.url) as client:
        assert client.run(TASK, "noop", INPUTS) == 7

    assert len({headers["idempotency-key"] for _, _, headers, _ in played.seen}) == 1
    assert [headers["prefer"] for _, _, headers, _ in played.seen] == ["wait=20"] * 2


@contextmanager
def silent_server() -> Iterator[str]:
    """A server that accepts connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_server_that_says_nothing_is_given_up() -> None:
    with (
        silent_server() as url,
        Client(url, timeout_s=0.1, max_retries=1) as client,
        pytest.raises(ConnectionFailedError, match="does not answer"),
    ):
        client.tasks()


def test_a_job_that_takes_longer_is_found_by_the_id_of_the_error(play: Play) -> None:
    played = play(lambda _: JSONResponse(ACCEPTED, 202))

    with Client(played.url) as client, pytest.raises(JobTimeoutError, match="still starting") as caught:
        client.run(TASK, "noop", INPUTS, timeout_s=0.05)

    assert caught.value.job_id == JOB_ID


def test_the_pause_grows_and_varies() -> None:
    policy = RetryPolicy(httpx.URL("http://x"), 4)

    pauses = [[policy.pause_s(attempt) for _ in range(50)] for attempt in range(3)]

    assert all(max(earlier) <= 2 * min(later) for earlier, later in pairwise(pauses))
    assert all(max(same) > min(same) for same in pauses)
    assert policy.pause_s(100) <= 8
    assert policy.pause_s(0, 30) == 30


def test_a_certificate_that_is_refused_stays_refused() -> None:
    error = httpx.ConnectError("no")
    error.__cause__ = ssl.SSLCertVerificationError("self-signed")

    assert not may_repeat(error, Call("GET", "/"))
    assert not may_repeat(httpx.UnsupportedProtocol("no"), Call("GET", "/"))
    assert may_repeat(httpx.ConnectError("refused"), Call("POST", "/", repeatable=False))
    assert not may_repeat(httpx.ReadTimeout("late"), Call("POST", "/", repeatable=False))
