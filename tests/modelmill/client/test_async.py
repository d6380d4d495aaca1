"""The asynchronous client against the real API."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from modelmill import AsyncClient, Client
from modelmill.client import (
    AsyncJob,
    InvalidRequestError,
    Job,
    JobCanceledError,
    JobTimeoutError,
    NotFoundError,
)
from modelmill.store import WorkerStore
from modelmill_tasks.shared.examples import CAT
from modelmill_tasks.shared.sources import source_bytes
from tests.support.api import finish
from tests.support.client import INPUTS, TASK
from tests.support.processes import wait_until

Ask = Callable[[Callable[[AsyncClient], Awaitable[Any]]], Any]


@pytest.fixture
def ask(api: httpx.Client) -> Ask:
    """Runs a function of a client in an event loop."""

    def run(function: Callable[[AsyncClient], Awaitable[Any]]) -> Any:
        async def connected() -> Any:
            async with AsyncClient(str(api.base_url)) as client:
                return await function(client)

        return asyncio.run(connected())

    return run


def test_both_clients_can_do_the_same() -> None:
    for one, other in ((Client, AsyncClient), (Job, AsyncJob)):
        names = {name for name in dir(one) if not name.startswith("_")} - {"close"}
        assert names == {name for name in dir(other) if not name.startswith("_")} - {"aclose"}
        for name in names:
            if not isinstance(getattr(one, name), property):
                ours, theirs = (inspect.signature(getattr(kind, name)).parameters for kind in (one, other))
                assert list(ours) == list(theirs), name
                assert [p.default for p in ours.values()] == [p.default for p in theirs.values()], name


def test_the_server_is_asked_what_it_has(ask: Ask) -> None:
    async def look(client: AsyncClient) -> None:
        assert TASK in await client.tasks()
        assert "noop" in await client.models()
        assert "noop" in await client.models(TASK)
        assert await client.model_tasks("noop") == [TASK]
        assert (await client.model_status("noop"))["status"] in {"uninitialized", "stopped"}
        assert (await client.ready())["models"] == {}
        with pytest.raises(NotFoundError):
            await client.models("zero-shot")

    ask(look)


def test_a_job_is_submitted_waited_for_and_read(ask: Ask, store: WorkerStore) -> None:
    async def look(client: AsyncClient) -> None:
        job = await client.submit(TASK, "noop", image=Path("modelmill/data/chelsea.jpg"), classes=["cat"])
        with pytest.raises(JobTimeoutError):
            await job.wait(0.05)
        assert (await job.refresh()).status == "starting"
        waiting = asyncio.create_task(job.wait())
        await asyncio.to_thread(finish, store)
        assert (await waiting).result == {"probabilities": [0.8, 0.2]}
        assert (await client.job(job.id)).result == job.result

    ask(look)


def test_a_run_gives_the_result_or_its_error(ask: Ask, store: WorkerStore) -> None:
    async def look(client: AsyncClient) -> None:
        running = asyncio.create_task(client.run(TASK, "noop", INPUTS, timeout_s=20))
        await asyncio.to_thread(wait_until, lambda: finish(store))
        assert await running == {"probabilities": [0.8, 0.2]}
        with pytest.raises(InvalidRequestError):
            await client.run(TASK, "noop", {"image": CAT})

    ask(look)


def test_a_job_is_canceled_deleted_and_run_again(ask: Ask) -> None:
    async def look(client: AsyncClient) -> None:
        job = await client.submit(TASK, "noop", INPUTS)
        assert (await job.cancel()).status == "canceled"
        with pytest.raises(JobCanceledError):
            _ = job.result
        again = await job.rerun()
        assert (again.status, again.task) == ("starting", TASK)
        assert [listed.id async for listed in client.jobs(status="canceled")] == [job.id]
        await job.delete()
        with pytest.raises(NotFoundError):
            await job.refresh()

    ask(look)


def test_files_are_uploaded_used_and_deleted(ask: Ask) -> None:
    async def look(client: AsyncClient) -> None:
        file = await client.upload(source_bytes(CAT), "cat.jpg")
        assert await client.download(file) == source_bytes(CAT)
        job = await client.submit(TASK, "noop", image=file, classes=["cat"])
        assert job.status == "starting"
        await client.delete_file(file)
        with pytest.raises(NotFoundError):
            await client.download(file)

    ask(look)


def test_many_are_submitted_and_collected(ask: Ask, store: WorkerStore) -> None:
    async def look(client: AsyncClient) -> None:
        jobs = await client.submit_many(TASK, "noop", [{"classes": ["a"]}, {"classes": []}], image=CAT)
        assert isinstance(jobs[0], AsyncJob)
        assert isinstance(jobs[1], InvalidRequestError)
        await asyncio.to_thread(finish, store)
        [document] = await client.collect([jobs[0].id])
        assert (document["id"], document["status"]) == (jobs[0].id, "complete")
        assert await client.collect([jobs[0].id], delete=True) == []
        with pytest.raises(NotFoundError):
            await jobs[0].refresh()

    ask(look)
