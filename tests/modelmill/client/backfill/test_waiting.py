"""A run that begins while the server is away waits; one that can never begin says so at once."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.responses import Response

from modelmill import processes
from modelmill.client.backfill import BackfillOptions, Stats, Summary, backfill
from modelmill.client.wire import Connection
from modelmill.errors import ConfigError, ModelmillError
from tests.modelmill.client.backfill.stub import TASK, Stub, refused
from tests.modelmill.client.backfill.test_engine import ROWS, assert_whole


def run(url: str, output: Path, **options: Any) -> Summary:
    where = Connection.make(url, timeout_s=10.0)
    return backfill(where, TASK, "stub", ROWS, output=output, options=BackfillOptions(**options))


def test_a_server_that_starts_later_is_waited_for(document: dict[str, Any], tmp_path: Path) -> None:
    port = processes.free_port()
    waits = threading.Event()
    told: list[str] = []
    ended: list[Summary] = []

    def note(stats: Stats) -> None:
        told.append(stats.trouble)
        waits.set()

    url = f"http://user:secret@127.0.0.1:{port}"
    thread = threading.Thread(
        target=lambda: ended.append(run(url, tmp_path, on_progress=note, give_up_after_s=60))
    )
    thread.start()
    assert waits.wait(30)
    assert told[0].startswith(f"http://127.0.0.1:{port} does not answer (")
    assert not list(tmp_path.iterdir())

    server = Stub(document, port=port)
    thread.join(60)
    server.close()

    assert [summary.state for summary in ended] == ["complete"]
    assert told[-1] == ""
    assert_whole(tmp_path)


def test_a_server_in_trouble_at_the_start_is_waited_for(stub: Stub, tmp_path: Path) -> None:
    answers = [
        refused(429, "rate_limited", **{"Retry-After": "0"}),
        Response("<html>Bad Gateway</html>", 502),
        refused(503, "store_unavailable"),
    ]
    stub.on_request = lambda asked: answers.pop() if asked == "models" and answers else None

    run(stub.url, tmp_path)

    assert not answers
    assert_whole(tmp_path)


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "http://no-such-host.invalid:8000"])
def test_a_server_that_stays_away_is_given_up(tmp_path: Path, url: str) -> None:
    with pytest.raises(ModelmillError, match=r"no answer for \d+ s: .* does not answer"):
        run(url, tmp_path / "out", give_up_after_s=0.2)

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "url", ["ftp://a:b@127.0.0.1", "127.0.0.1:8000", "http://a:b@[::1", "http://127.0.0.1:99999", "http://"]
)
def test_a_url_that_cannot_work_is_refused_at_once(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match=r"^The URL of the server (needs http|is not a URL)[^@]*$"):
        run(url, tmp_path / "out", give_up_after_s=3600)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (lambda: refused(401, "unauthenticated"), "It is unauthenticated"),
        (lambda: refused(404, "task_not_found"), "It is task_not_found"),
        (lambda: Response("<html>Not Found</html>", 404), "not as a Modelmill server does"),
        (lambda: Response("<html>Hello</html>"), "not as a Modelmill server does"),
    ],
)
def test_a_refusal_at_the_start_ends_the_run_at_once(
    stub: Stub, tmp_path: Path, answer: Callable[[], Response], message: str
) -> None:
    asked: list[str] = []

    def refuse(kind: str) -> Response:
        asked.append(kind)
        return answer()

    stub.on_request = refuse

    with pytest.raises(ModelmillError, match=message):
        run(stub.url, tmp_path / "out", give_up_after_s=3600)

    assert asked == ["models"]
    assert not (tmp_path / "out").exists()
