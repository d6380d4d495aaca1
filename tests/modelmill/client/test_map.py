"""``map``: results in order or as jobs end, a limited number in flight, and no job left behind."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from modelmill import AsyncClient, Client
from tests.support.client import TASK, Play, Played
from tests.support.processes import wait_until


class Slow:
    """A server whose jobs end when the test says so. The first class of a job is its name."""

    def __init__(self, play: Play) -> None:
        self.released: set[str] = set()
        self.canceled: list[str] = []
        self.running = 0
        self.most = 0
        self.ids: dict[str, str] = {}
        self.played: Played = play(self.answer)

    async def answer(self, request: Request) -> Response:
        if request.url.path.endswith("/cancel"):
            self.canceled.append(request.url.path.split("/")[-2])
            return JSONResponse({"id": self.canceled[-1], "status": "canceled"}, 202)
        name = json.loads(await request.body())["classes"][0]
        id_ = self.ids.setdefault(request.headers["idempotency-key"], f"job-{name}")
        if "prefer" not in request.headers:
            return JSONResponse({"id": id_, "status": "starting"}, 202)
        self.running += 1
        self.most = max(self.most, self.running)
        while name not in self.released and "all" not in self.released:
            if await request.is_disconnected():
                break
            await asyncio.sleep(0.005)
        self.running -= 1
        return JSONResponse({"id": id_, "status": "complete", "result": name})


def named(count: int) -> list[dict[str, Any]]:
    return [{"classes": [str(number)]} for number in range(count)]


def test_no_more_than_so_many_are_in_flight_and_the_first_comes_first(play: Play) -> None:
    server = Slow(play)

    def release_when_three_run() -> None:
        wait_until(lambda: server.running == 3)
        server.released.add("1")

    with Client(server.played.url) as client, ThreadPoolExecutor() as pool:
        results = client.map(TASK, "noop", named(6), concurrency=3, ordered=False)
        pool.submit(release_when_three_run)

        assert next(results) == (1, "1")
        server.released.add("0")
        assert next(results) == (0, "0")
        server.released.add("all")
        assert sorted(results) == [(2, "2"), (3, "3"), (4, "4"), (5, "5")]

    assert server.most == 3


@pytest.mark.parametrize("leave", ["break", "error"])
def test_leaving_early_cancels_what_is_in_flight(play: Play, leave: str) -> None:
    server = Slow(play)
    server.released.add("0")
    threads = threading.active_count()

    with Client(server.played.url) as client:
        results = client.map(TASK, "noop", named(100), concurrency=3)
        assert next(results) == "0"
        wait_until(lambda: server.running == 2)
        started = time.monotonic()
        if leave == "break":
            results.close()  # type: ignore[attr-defined]
        else:
            with pytest.raises(KeyError):
                results.throw(KeyError)  # type: ignore[attr-defined]
        assert time.monotonic() - started < 3

    assert sorted(server.canceled) == ["job-1", "job-2"]
    wait_until(lambda: threading.active_count() == threads)


def test_an_error_cancels_the_others(play: Play) -> None:
    server = Slow(play)

    def rows() -> Iterator[dict[str, Any]]:
        yield from named(2)
        wait_until(lambda: server.running == 2)
        raise LookupError("the rows broke off")

    with Client(server.played.url) as client, pytest.raises(LookupError):
        list(client.map(TASK, "noop", rows(), concurrency=5))

    assert sorted(server.canceled) == ["job-0", "job-1"]


def test_leaving_early_while_awaiting_does_so_too(play: Play) -> None:
    server = Slow(play)
    server.released.add("0")

    async def run() -> None:
        async with AsyncClient(server.played.url) as client:
            async for result in client.map(TASK, "noop", named(9), concurrency=3):
                assert result == "0"
                await asyncio.to_thread(wait_until, lambda: server.running == 2)
                break
            await asyncio.to_thread(wait_until, lambda: len(server.canceled) == 2)

    asyncio.run(run())
    assert sorted(server.canceled) == ["job-1", "job-2"]
