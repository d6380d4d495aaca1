"""What a client may send before its key is checked: raw sockets against the API's own protocol."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path

import httpx
import pytest

from modelmill.settings import Settings
from tests.support.api import BODY, JOBS, waiting
from tests.support.processes import wait_until
from tests.support.servers import ApiServer, api_process

KIB = 1024
LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n"


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Small bounds, and times that a test can wait for."""
    return settings.model_copy(
        update={
            "max_head_bytes": 32 * KIB,
            "max_url_bytes": 8 * KIB,
            "max_headers": 50,
            "max_connections": 24,
            "head_timeout_s": 1.0,
            "keep_alive_s": 1,
            "body_timeout_s": 1.0,
        }
    )


class Sockets:
    """Connections to one API, closed at the end."""

    def __init__(self, url: str, cleanup: ExitStack) -> None:
        self._port = httpx.URL(url).port
        self._cleanup = cleanup

    def __call__(self, data: bytes = b"") -> socket.socket:
        made = self._cleanup.enter_context(socket.create_connection(("127.0.0.1", self._port), timeout=20))
        made.sendall(data)
        return made


@pytest.fixture
def connect(settings: Settings) -> Iterator[Sockets]:
    with ExitStack() as cleanup:
        server = cleanup.enter_context(ApiServer(settings))
        yield Sockets(server.url, cleanup)


def read_all(connection: socket.socket) -> bytes:
    """What the server sends until it closes the connection."""
    received = bytearray()
    try:
        while data := connection.recv(64 * KIB):
            received += data
    except ConnectionResetError:
        pass
    return bytes(received)


def problem(answer: bytes) -> tuple[int, str]:
    """Status and code of an answer, which must be a whole problem document."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"content-type: application/problem+json" in head
    assert b"connection: close" in head
    return int(head.split()[1]), json.loads(body)["code"]


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (LIVE + b"X: " + b"a" * 40 * KIB + b"\r\n\r\n", (431, "head_too_large")),
        (LIVE + b"X: " + b"a" * 4000 * KIB, (431, "head_too_large")),
        (LIVE + b"a: b\r\n" * 60 + b"\r\n", (431, "head_too_large")),
        (LIVE + b"a: b\r\n" * 100_000, (431, "head_too_large")),
        (b"a" * 100_000, (400, "malformed_request")),
        (b"GET /" + b"a" * 9 * KIB + b" HTTP/1.1\r\nHost: localhost\r\n\r\n", (414, "url_too_long")),
        (b"GET /?" + b"a" * 4000 * KIB, (414, "url_too_long")),
        (b"\r\n" * 40 * KIB, (431, "head_too_large")),
        (b"GARBAGE\r\n\r\n", (400, "malformed_request")),
        (LIVE + b"Content-Length: -1\r\n\r\n", (400, "malformed_request")),
        (LIVE + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n", (400, "malformed_request")),
    ],
    ids=lambda value: value[1] if isinstance(value, tuple) else "",
)
def test_a_head_beyond_its_bounds_is_refused(
    connect: Sockets, data: bytes, expected: tuple[int, str]
) -> None:
    connection = connect()

    with ThreadPoolExecutor(1) as sender:
        sending = sender.submit(_send, connection, data)
        answer = read_all(connection)
        sending.result()

    assert problem(answer[answer.rindex(b"HTTP/1.1 ") :]) == expected


def _send(connection: socket.socket, data: bytes) -> None:
    # The server may have closed the connection.
    with suppress(OSError):
        connection.sendall(data)


def test_a_head_within_its_bounds_is_read_in_any_pieces(connect: Sockets) -> None:
    data = b"GET /health/live?" + b"q" * 7 * KIB + b" HTTP/1.1\r\nHost: localhost\r\n"
    data += b"Cookie: " + b"c" * 15 * KIB + b"\r\n" + b"a: b\r\n" * 40 + b"Connection: close\r\n\r\n"

    for step in (len(data), 8 * KIB, 1000, 7):
        connection = connect()
        for at in range(0, len(data), step):
            connection.sendall(data[at : at + step])
        assert read_all(connection).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("step", [1, 2, 3, 5, 1 << 20])
def test_requests_behind_each_other_are_all_answered_in_order(connect: Sockets, step: int) -> None:
    data = b"".join(
        b"POST %b HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2\r\n\r\n{}" % path.encode()
        if post
        else b"GET %b HTTP/1.1\r\nHost: localhost\r\n\r\n" % path.encode()
        for post, path in [(False, "/health/live"), (True, JOBS), (False, "/nowhere"), (True, "/nowhere")] * 3
    )
    connection = connect()

    for at in range(0, len(data), step):
        connection.sendall(data[at : at + step])
    connection.sendall(LIVE + b"Connection: close\r\n\r\n")

    statuses = [part.split()[0] for part in read_all(connection).split(b"HTTP/1.1 ")[1:]]
    assert statuses == [b"200", b"422", b"404", b"404"] * 3 + [b"200"]


def test_a_thousand_requests_in_one_write_are_all_answered(connect: Sockets) -> None:
    connection = connect()
    data = (LIVE + b"\r\n") * 3_000 + LIVE + b"Connection: close\r\n\r\n"

    with ThreadPoolExecutor(1) as sender:
        sending = sender.submit(connection.sendall, data)
        answers = read_all(connection)
        sending.result()

    assert answers.count(b"HTTP/1.1 200 ") == 3_001


def test_slow_clients_are_ended_and_a_client_that_waits_is_not(connect: Sockets, settings: Settings) -> None:
    post = f"POST {JOBS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n".encode()
    half_head, silent, blank = connect(LIVE + b"X: "), connect(), connect(b"\r\n")
    slow_body = connect(post + b"{")
    answered = connect(b"POST /nowhere HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\n{")
    idle = connect(LIVE + b"\r\n")
    body = json.dumps(BODY).encode()
    patient = connect(
        f"POST {JOBS} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=3\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )

    assert problem(read_all(half_head)) == (408, "request_timeout")
    assert problem(read_all(slow_body)) == (408, "request_timeout")
    assert (read_all(silent), read_all(blank)) == (b"", b"")
    assert read_all(answered).startswith(b"HTTP/1.1 404 ")
    assert read_all(idle).startswith(b"HTTP/1.1 200 ")
    assert read_all(patient).startswith(b"HTTP/1.1 202 ")


def test_a_flood_of_silent_connections_pushes_out_itself(connect: Sockets) -> None:
    flood = [connect(LIVE + b"X: ") for _ in range(60)]

    answer = read_all(connect(LIVE + b"Connection: close\r\n\r\n"))

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert [read_all(connection) for connection in flood[:30]] == [b""] * 30


def test_if_all_connections_have_requests_a_new_one_is_refused(settings: Settings) -> None:
    with ApiServer(settings) as server, ExitStack() as cleanup:
        connect = Sockets(server.url, cleanup)
        client = cleanup.enter_context(httpx.Client(base_url=server.url))
        job_id = client.post(JOBS, json=BODY).json()["id"]
        wait = f"GET /api/jobs/{job_id} HTTP/1.1\r\nHost: localhost\r\nPrefer: wait=30\r\n\r\n".encode()
        held = [connect(wait) for _ in range(settings.max_connections - 1)]
        wait_until(lambda: waiting(client) == len(held), what="the requests that wait")
        client.close()
        last = connect(wait)

        def is_refused() -> bool:
            answer = read_all(connect(LIVE + b"Connection: close\r\n\r\n"))
            return b" 503 " in answer and problem(answer) == (503, "server_busy")

        wait_until(is_refused, what="the refusal")
        last.close()
        held.pop().close()
        wait_until(
            lambda: read_all(connect(LIVE + b"Connection: close\r\n\r\n")).startswith(b"HTTP/1.1 200 "),
            what="room for a connection",
        )


def test_who_sends_on_after_a_refusal_still_gets_it(connect: Sockets) -> None:
    head = f"POST {JOBS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99000000\r\n\r\n".encode()
    connection = connect(head)

    for _ in range(40):
        connection.sendall(b" " * 100 * KIB)

    assert problem(read_all(connection)) == (413, "body_too_large")


def test_an_upgrade_is_answered_as_a_plain_request(connect: Sockets) -> None:
    for protocol in (b"websocket", b"h2c"):
        upgrade = LIVE + b"Connection: Upgrade\r\nUpgrade: %b\r\n\r\n" % protocol
        connection = connect(upgrade + LIVE + b"Connection: close\r\n\r\n")
        assert read_all(connection).count(b"HTTP/1.1 200 ") == 2


def test_the_command_line_serves_with_these_bounds(settings: Settings, tmp_path: Path) -> None:
    with api_process(settings, tmp_path) as (_, url), ExitStack() as cleanup:
        connection = Sockets(url, cleanup)(LIVE + b"X: " + b"a" * 40 * KIB)
        assert problem(read_all(connection)) == (431, "head_too_large")


def test_an_attack_is_one_line_in_the_log(connect: Sockets, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(10):
        read_all(connect(b"SECRET\r\n\r\n"))

    wait_until(lambda: "malformed_request" in caplog.text, what="the line")

    lines = [record for record in caplog.records if "malformed_request" in record.getMessage()]
    assert len(lines) <= 3
    assert "SECRET" not in caplog.text
