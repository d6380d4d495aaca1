"""Bulk submit and collect, over real sockets; the store plays the worker."""

from __future__ import annotations

import base64
import json
import signal
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import redis

from modelmill.settings import Settings
from modelmill.store import ClaimRequest, WorkerStore, keys
from modelmill_tasks.shared.examples import CAT
from tests.support.api import BODY, TASK, finish
from tests.support.processes import wait_until
from tests.support.servers import ApiServer, api_process

BULK = f"{TASK}/noop/jobs:bulk"
LINE = json.dumps(BODY).encode() + b"\n"


def lines(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/x-ndjson"
    return [json.loads(line) for line in response.text.splitlines()]


def connect(api: httpx.Client, path: str = BULK) -> socket.socket:
    """A request whose body is still to come, as chunks."""
    connection = socket.create_connection((api.base_url.host, api.base_url.port or 80), timeout=20)
    connection.sendall(
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    )
    return connection


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def read_until(connection: socket.socket, what: bytes) -> bytes:
    data = b""
    while what not in data:
        more = connection.recv(65536)
        assert more, data
        data += more
    return data


# Submitting


def test_each_line_is_a_job_in_the_order_of_the_lines(api: httpx.Client, store: WorkerStore) -> None:
    bodies = [json.dumps(BODY | {"tags": [str(number)]}) for number in range(100)]
    answers = lines(api.post(BULK, content="\n".join(bodies)))
    assert {answer["status"] for answer in answers} == {"starting"}
    ids = [answer["id"] for answer in answers]
    assert [job.id for job in store.claim(ClaimRequest("noop", "fence", "node", 100, 10**9)).jobs] == ids
    assert [api.get(f"/api/jobs/{ids[number]}").json()["tags"] for number in (0, 99)] == [["0"], ["99"]]


def test_a_line_that_is_wrong_is_answered_in_its_place(settings: Settings) -> None:
    server = ApiServer(settings.model_copy(update={"max_body_bytes": 50_000}))
    long = json.dumps(BODY | {"metadata": {"x": "y" * 60_000}})
    text = "\r\n".join(
        [
            "",
            json.dumps(BODY),
            "{",
            '{"image": 1}',
            "   ",
            long,
            json.dumps(BODY | {"nonsense": 1}),
            json.dumps(BODY),
        ]
    )
    try:
        with httpx.Client(base_url=server.url) as client:
            answers = lines(client.post(BULK, content=text))
    finally:
        server.close()
    codes = [answer["error"]["code"] if "error" in answer else None for answer in answers]
    assert codes == [None, "invalid_input", "invalid_input", "body_too_large", "invalid_input", None]
    wrong = answers[4]["error"]
    assert (wrong["retryable"], wrong["errors"][0]["field"]) == (False, "nonsense")


def test_what_is_full_is_said_line_by_line(settings: Settings) -> None:
    server = ApiServer(settings.model_copy(update={"max_queue_depth": 2}))
    try:
        with httpx.Client(base_url=server.url) as client:
            answers = lines(client.post(BULK, content=LINE * 3))
    finally:
        server.close()
    assert [answer.get("status") for answer in answers] == ["starting", "starting", None]
    error = answers[2]["error"]
    assert (error["code"], error["retryable"], error["retry_after_s"]) == ("queue_full", True, 5)


def test_lines_with_an_idempotency_key_may_be_sent_again(api: httpx.Client) -> None:
    text = "\n".join(json.dumps(BODY | {"idempotency_key": f"row-{number}"}) for number in (1, 2, 1))
    first, again = (lines(api.post(BULK, content=text)) for _ in range(2))
    assert first == again
    assert first[0] == first[2] != first[1]
    other = json.dumps(BODY | {"classes": ["x"], "idempotency_key": "row-1"})
    (conflict,) = lines(api.post(BULK, content=other))
    assert conflict["error"]["code"] == "idempotency_conflict"


def test_lines_may_name_uploaded_files(api: httpx.Client, raw_redis: redis.Redis) -> None:
    png = base64.b64decode(CAT.partition(",")[2])
    file = api.post("/api/files", files={"file": ("cat.jpg", png)}).json()["id"]
    names = [file, f"file:{uuid.uuid4()}", file]
    text = "\n".join(json.dumps(BODY | {"image": name}) for name in names)
    first, unknown, last = lines(api.post(BULK, content=text))
    assert unknown["error"]["code"] == "media_not_found"
    assert {first["status"], last["status"]} == {"starting"}
    assert raw_redis.hget(f"{keys.FILE}{file.removeprefix('file:')}", "refs") == b"2"


@pytest.mark.parametrize("content", [b"", b"\n\r\n \n"])
def test_nothing_in_is_nothing_out(api: httpx.Client, content: bytes) -> None:
    assert lines(api.post(BULK, content=content)) == []


def test_what_is_wrong_with_the_whole_request_is_a_problem(api: httpx.Client) -> None:
    for path, code in (
        ("/api/tasks/nonsense/noop/jobs:bulk", "task_not_found"),
        (f"{TASK}/nonsense/jobs:bulk", "model_not_found"),
        (f"{TASK}/minilm/jobs:bulk", "task_not_supported"),
    ):
        response = api.post(path, content=LINE)
        assert (response.status_code, response.json()["code"]) == (404, code)
    assert api.get(BULK).status_code == 405


def test_lines_are_answered_while_others_are_still_to_come(api: httpx.Client) -> None:
    with connect(api) as connection:
        ids = set()
        for _ in range(3):
            connection.sendall(chunk(LINE[:50]))
            connection.sendall(chunk(LINE[50:]))
            answer = read_until(connection, b"starting")
            ids.add(answer[answer.index(b'"id"') :][:44])
        assert len(ids) == 3
        connection.sendall(chunk(LINE.strip()) + b"0\r\n\r\n")
        assert b"starting" in read_until(connection, b"\r\n0\r\n\r\n")


def test_a_client_that_hangs_up_keeps_what_was_accepted(api: httpx.Client, raw_redis: redis.Redis) -> None:
    with connect(api) as connection:
        connection.sendall(chunk(LINE * 3 + LINE[:20]))
        read_until(connection, b"starting")
    wait_until(lambda: raw_redis.zcard(f"{keys.JOBS}anonymous") == 3, what="three jobs")
    assert lines(api.post(BULK, content=LINE))[0]["status"] == "starting"


def test_a_client_that_reads_nothing_is_not_read_for_ever(
    api: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("modelmill_api.routes.bulk.MAX_UNREAD_BYTES", 256 * 1024)
    wrong = chunk((b"x" * 40 + b"\n") * 1500)
    before, sent = psutil.Process().memory_info().rss, 0
    with connect(api) as connection:
        connection.settimeout(2)
        with suppress(TimeoutError):
            while sent < 100_000_000:
                sent += connection.send(wrong[sent % len(wrong) :])
        # This process does not hold all unread answers: the network has buffers, too.
        assert 100_000 < sent < 100_000_000
        assert psutil.Process().memory_info().rss - before < 50_000_000
        # It goes on when the client does.
        connection.settimeout(20)
        read = 0
        while read < 4_000_000:
            read += len(connection.recv(1_000_000))


def test_a_server_that_stops_answers_what_it_has_read(settings: Settings, tmp_path: Path) -> None:
    with api_process(settings, tmp_path) as (process, url):
        with httpx.Client(base_url=url, timeout=60) as client, connect(client) as connection:
            connection.sendall(chunk(LINE * 2 + b"{"))
            read_until(connection, b"starting")
            process.send_signal(signal.SIGTERM)
            # The last chunk, which ends the answer correctly.
            assert read_until(connection, b"0\r\n\r\n") == b"0\r\n\r\n"
        assert process.wait(timeout=5) in (0, -signal.SIGTERM)
    assert "Error" not in (tmp_path / "api.log").read_text()


# Collecting


def collect(
    client: httpx.Client, ids: Sequence[str], wait_s: int | None = None, **more: Any
) -> httpx.Response:
    headers = {} if wait_s is None else {"Prefer": f"wait={wait_s}"}
    return client.post("/api/jobs:collect", json={"ids": list(ids), **more}, headers=headers)


@pytest.fixture
def jobs(api: httpx.Client) -> list[str]:
    return [answer["id"] for answer in lines(api.post(BULK, content=LINE * 40))]


def test_ends_are_collected_with_their_results_as_they_were_written(
    api: httpx.Client, store: WorkerStore, jobs: list[str]
) -> None:
    assert lines(collect(api, jobs)) == []
    finish(store, result=b'{"probabilities":\n [1, 0]}', count=20)
    finish(store, result=json.dumps({"large": "x" * keys.INLINE_BYTES}).encode(), count=5)
    found = lines(collect(api, [*jobs, jobs[0]]))
    assert [job["id"] for job in found] == jobs[:25]
    for job in (found[0], found[24]):
        assert job == api.get(f"/api/jobs/{job['id']}").json()
    assert found[0]["result"] == {"probabilities": [1, 0]}


def test_collecting_waits_for_the_first_end(api: httpx.Client, store: WorkerStore, jobs: list[str]) -> None:
    worker = threading.Timer(0.5, finish, (store,))
    worker.start()
    started = time.monotonic()
    response = collect(api, jobs, 20)
    assert {job["id"] for job in lines(response)} == set(jobs)
    assert 0.4 < time.monotonic() - started < 5
    assert response.headers["preference-applied"] == "wait=20"
    worker.join()


def test_collecting_waits_no_longer_than_asked(api: httpx.Client, jobs: list[str]) -> None:
    started = time.monotonic()
    assert lines(collect(api, jobs, 1)) == []
    assert 0.9 < time.monotonic() - started < 5


def test_unknown_jobs_are_said_to_be_so_at_once(api: httpx.Client, jobs: list[str]) -> None:
    unknown = str(uuid.uuid4())
    (found,) = lines(collect(api, [*jobs, unknown], 20))
    assert (found["id"], found["status"], found["error"]["code"]) == (unknown, None, "job_not_found")


def test_jobs_are_deleted_together(api: httpx.Client, store: WorkerStore, jobs: list[str]) -> None:
    finish(store, count=10)
    (running,) = store.claim(ClaimRequest("noop", "fence", "node", 1, 10**9)).jobs
    assert collect(api, [*jobs, str(uuid.uuid4())], delete=True).json() == {"deleted": 40}
    assert collect(api, jobs, delete=True).json() == {"deleted": 0}
    assert {job["status"] for job in lines(collect(api, jobs))} == {None}
    assert store.claim(ClaimRequest("noop", "again", "node", 50, 10**9)).jobs == ()
    assert running.id in jobs


def test_jobs_of_somebody_else_are_as_unknown_ones(
    api: httpx.Client, raw_redis: redis.Redis, store: WorkerStore, jobs: list[str]
) -> None:
    finish(store)
    raw_redis.hset(keys.JOB + jobs[0], "caller", "somebody")
    first, *others = lines(collect(api, jobs))
    assert (first["id"], first["error"]["code"]) == (jobs[0], "job_not_found")
    assert len(others) == 39
    assert collect(api, jobs[:2], delete=True).json() == {"deleted": 1}
    assert raw_redis.exists(keys.JOB + jobs[0])


def test_a_wrong_body_is_named(api: httpx.Client) -> None:
    some = str(uuid.uuid4())
    for body, field in (
        ({"ids": []}, "ids"),
        ({"ids": [some] * 1001}, "ids"),
        ({"ids": ["nonsense"]}, "ids.0"),
        ({"ids": [some, some.upper()]}, "ids.1"),
        ({"ids": [some], "delete": 1}, "delete"),
        ({"ids": [some], "more": 1}, "more"),
        ({}, "ids"),
        ([], "body"),
    ):
        response = api.post("/api/jobs:collect", json=body)
        assert (response.status_code, response.json()["code"]) == (422, "invalid_input"), body
        assert response.json()["errors"][0]["field"] == field
    assert api.post("/api/jobs:collect", content=b"{").status_code == 422
    assert api.post("/api/jobs:collect", content=b" " * 70_000).status_code == 413
