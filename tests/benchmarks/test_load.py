"""The load client, against a server with known answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from benchmarks.load import Target, burst, closed_loop


class Handler(BaseHTTPRequestHandler):
    """Accepts jobs. At the second poll of a job, its answer is that the job has ended."""

    protocol_version = "HTTP/1.1"
    asked: dict[str, int]
    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._answer({"id": str(len(self.bodies))}, 500 if self.path == "/broken" else 202)

    def do_GET(self) -> None:
        self.asked[self.path] = self.asked.get(self.path, 0) + 1
        self._answer({"status": "complete" if self.asked[self.path] > 1 else "starting"})

    def log_message(self, *_: Any) -> None:
        """Nothing."""

    def _answer(self, document: dict[str, Any], status: int = 200) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    Handler.asked, Handler.bodies = {}, []
    running = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=running.serve_forever)
    thread.start()
    yield running
    running.shutdown()
    thread.join()
    running.server_close()


def target(server: ThreadingHTTPServer, path: str = "/jobs", polled: bool = True) -> Target:
    return Target(
        "known",
        server.server_address[1],
        path,
        b'{"n": 1}',
        poll_path=(lambda accepted: f"/jobs/{accepted['id']}") if polled else None,
        ended=lambda document: document.get("status") == "complete",
    )


@pytest.mark.parametrize("ask", [closed_loop, burst])
def test_every_job_is_submitted_once_and_polled_until_it_has_ended(
    server: ThreadingHTTPServer, ask: Any
) -> None:
    run = ask(target(server), 30, 4)
    assert Handler.bodies == [b'{"n": 1}'] * 30
    assert Handler.asked == {f"/jobs/{number}": 2 for number in range(1, 31)}
    assert (len(run.latencies_s), run.requests) == (30, 90)
    assert 0 < run.p50_s <= run.p99_s
    assert run.jobs_per_s == pytest.approx(30 / run.seconds)


def test_an_answer_that_is_the_result_is_not_polled(server: ThreadingHTTPServer) -> None:
    run = closed_loop(target(server, polled=False), 10, 2)
    assert (run.requests, Handler.asked) == (10, {})


def test_a_refusal_ends_the_run(server: ThreadingHTTPServer) -> None:
    with pytest.raises(RuntimeError, match="500"):
        closed_loop(target(server, "/broken"), 10, 2)
