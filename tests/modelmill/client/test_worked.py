"""Jobs on a real worker. This is one test, because starting a worker takes longest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from modelmill import AsyncClient, Client
from modelmill.client import InvalidRequestError, JobFailedError
from tests.support.client import INPUTS, TASK
from tests.support.workers import Workers


def test_a_worker_answers_both_clients(client: Client, start_workers: Callable[..., Workers]) -> None:
    start_workers()

    a_run_that_ends_soon_is_one_request(client)
    results_come_in_the_order_of_the_rows(client)
    errors_stand_in_their_places(client)
    asyncio.run(the_awaiting_client_maps_too(str(client._wire.http.base_url)))


def rows_of(count: int, taken: list[int] | None = None) -> Iterator[dict[str, Any]]:
    for number in range(count):
        if taken is not None:
            taken.append(number)
        yield {"image": INPUTS["image"], "classes": [f"class {number}"] * (number % 3 + 1)}


def a_run_that_ends_soon_is_one_request(client: Client) -> None:
    client.submit(TASK, "picky", INPUTS).wait()
    paths: list[str] = []
    client._wire.http.event_hooks["request"].append(lambda request: paths.append(request.url.path))

    assert client.run(TASK, "noop", INPUTS) == {"probabilities": [0.5, 0.5]}
    images = [INPUTS["image"]] * 2
    assert client.run(TASK, "noop", INPUTS, image=images, batched=True) == [{"probabilities": [0.5, 0.5]}] * 2
    with pytest.raises(JobFailedError, match="damaged"):
        client.run(TASK, "picky", INPUTS, classes=["bad"])

    assert len(paths) == 3


def results_come_in_the_order_of_the_rows(client: Client) -> None:
    taken: list[int] = []
    results = client.map(TASK, "noop", rows_of(50, taken), concurrency=8, lane="bulk")

    assert next(results) == {"probabilities": [1.0]}
    assert len(taken) <= 9
    assert [len(result["probabilities"]) for result in results] == [n % 3 + 1 for n in range(1, 50)]
    assert next(iter(client.jobs())).document["lane"] == "bulk"

    unordered = dict(client.map(TASK, "noop", rows_of(20), ordered=False))
    assert {index: len(result["probabilities"]) for index, result in unordered.items()} == {
        number: number % 3 + 1 for number in range(20)
    }
    assert list(client.map(TASK, "noop", [])) == []


def errors_stand_in_their_places(client: Client) -> None:
    rows: list[dict[str, Any]] = [{"classes": names} for names in (["a"], ["bad"], [], ["a", "b"])]

    given = list(client.map(TASK, "picky", rows, return_errors=True, image=INPUTS["image"]))

    assert isinstance(given[1], JobFailedError)
    assert isinstance(given[2], InvalidRequestError)
    assert [given[0], given[3]] == [{"probabilities": [1.0]}, {"probabilities": [0.5, 0.5]}]
    with pytest.raises(JobFailedError):
        list(client.map(TASK, "picky", rows, image=INPUTS["image"]))


async def the_awaiting_client_maps_too(url: str) -> None:
    async def rows() -> AsyncIterator[dict[str, Any]]:
        for row in rows_of(20):
            yield row

    async with AsyncClient(url) as client:
        assert await client.run(TASK, "noop", INPUTS) == {"probabilities": [0.5, 0.5]}
        ordered = [len(r["probabilities"]) async for r in client.map(TASK, "noop", rows(), concurrency=5)]
        assert ordered == [number % 3 + 1 for number in range(20)]
        found = {i: r async for i, r in client.map(TASK, "noop", rows_of(9), ordered=False)}
        assert sorted(found) == list(range(9))
