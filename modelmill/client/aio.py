"""The asynchronous client, for asyncio. ``Client``, the blocking one, documents each call."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Mapping
from contextlib import aclosing
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from modelmill.client.errors import ApiError
from modelmill.client.flows import Document, Flows, Uploadable
from modelmill.client.jobs import AsyncJob
from modelmill.client.many import Batch, Lines, pending_submit, run_many
from modelmill.client.media import File
from modelmill.client.protocol import Flow
from modelmill.client.wire import MIB, AsyncWire, Connection

if TYPE_CHECKING:
    from modelmill.client.backfill import Input, Summary
    from modelmill.client.backfill.options import BackfillKeywords

T = TypeVar("T")


class AsyncClient:
    """A connection to one Modelmill server, for one event loop. It takes the arguments of ``Client``."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        max_retries: int = 4,
        upload_over_bytes: int = 8 * MIB,
    ) -> None:
        self._connection = Connection.make(
            url,
            api_key=api_key,
            timeout_s=timeout_s,
            max_retries=max_retries,
            upload_over_bytes=upload_over_bytes,
        )
        self._wire = AsyncWire(self._connection)
        self._flows = Flows(self._wire.policy, upload_over_bytes)

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Closes its connections. Jobs continue."""
        await self._wire.http.aclose()

    async def run(
        self,
        task: str,
        model: str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        timeout_s: float | None = None,
        batched: bool = False,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Any:
        """Submits a job, waits for its end, and returns its result."""
        pending, merged = pending_submit(idempotency_key, {**(inputs or {}), **fields})
        return await self._do(
            self._flows.run(task, model, merged, pending, batched=batched, timeout_s=timeout_s)
        )

    async def submit(
        self,
        task: str,
        model: str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        batched: bool = False,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> AsyncJob:
        """Submits a job and does not wait."""
        pending, merged = pending_submit(idempotency_key, {**(inputs or {}), **fields})
        return self._job(await self._do(self._flows.submit(task, model, merged, pending, batched=batched)))

    async def map(
        self,
        task: str,
        model: str,
        rows: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        /,
        *,
        concurrency: int = 16,
        ordered: bool = True,
        return_errors: bool = False,
        timeout_s: float | None = None,
        batched: bool = False,
        **shared: Any,
    ) -> AsyncGenerator[Any, None]:
        """Runs a job for each row, many at once, and yields the results.

        The rows may be an asynchronous iterable. To stop early, close the generator: ``contextlib.aclosing``.
        """
        batch = Batch(task, model, timeout_s, batched, return_errors)
        results = run_many(self._wire, self._flows, batch, _with_shared(rows, shared), concurrency, ordered)
        async with aclosing(results):
            async for result in results:
                yield result

    async def backfill(
        self,
        task: str,
        model: str,
        input: Input,
        /,
        *,
        output: str | Path,
        **options: Unpack[BackfillKeywords],
    ) -> Summary:
        """Sends every row of an input through a model, into a folder. See docs/backfill.md.

        ``options`` are the fields of ``modelmill.client.backfill.BackfillOptions``.
        """
        from modelmill.client.backfill import BackfillOptions, backfill_async

        how = BackfillOptions(**options)
        return await backfill_async(self._connection, task, model, input, output=output, options=how)

    async def submit_many(
        self,
        task: str,
        model: str,
        rows: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]],
        /,
        **shared: Any,
    ) -> list[AsyncJob | ApiError]:
        """Submits many jobs in few requests and does not wait. A refused row is an error in its place."""
        answers: list[Document | ApiError] = []
        lines = Lines()
        async for row in _with_shared(rows, shared):
            if due := lines.add(await self._do(self._flows.encode_row(row))):
                answers += await self._do(self._flows.bulk(task, model, due))
        answers += await self._do(self._flows.bulk(task, model, lines.rest()))
        return [answer if isinstance(answer, ApiError) else self._job(answer) for answer in answers]

    async def collect(
        self, ids: Iterable[str], *, wait_s: float = 20, delete: bool = False
    ) -> list[Document]:
        """Waits until at least one of the jobs has ended; returns the documents of all that have."""
        return await self._do(self._flows.collect(ids, int(wait_s), delete))

    async def job(self, job_id: str) -> AsyncJob:
        """A job by its id, as it is now."""
        return self._job(await self._do(self._flows.ask(job_id)))

    async def jobs(
        self,
        *,
        task: str | None = None,
        model: str | None = None,
        status: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[AsyncJob]:
        """Your jobs, newest first, without their results; at most ``limit``."""
        wanted, cursor = {"task": task, "model": model, "status": status, "tag": tag}, None
        left = limit
        while left is None or left > 0:
            page = await self._do(self._flows.page(wanted, cursor, left))
            for document in page["jobs"]:
                yield self._job(document)
            left = None if left is None else left - len(page["jobs"])
            cursor = page["next"]
            if not cursor:
                return

    async def upload(self, source: Uploadable, name: str | None = None) -> File:
        """Uploads a file as a stream. Any number of jobs can use it."""
        return await self._do(self._flows.upload(source, name))

    async def download(self, file: File | str) -> bytes:
        """The bytes of an uploaded file or of a result that is a file."""
        return await self._do(self._flows.download(file))

    async def delete_file(self, file: File | str) -> None:
        """Deletes an uploaded file."""
        await self._do(self._flows.delete_file(file))

    async def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(await self._do(self._flows.read("tasks")))

    async def models(self, task: str | None = None) -> list[str]:
        """Names of the models, or of those that answer ``task``."""
        parts = ("tasks", task, "models") if task else ("models",)
        return list(await self._do(self._flows.read(*parts)))

    async def model_tasks(self, model: str) -> list[str]:
        """Names of the tasks that ``model`` answers."""
        return list(await self._do(self._flows.read("models", model, "tasks")))

    async def model_status(self, model: str) -> Document:
        """The status of ``model`` on the workers that serve it."""
        return dict(await self._do(self._flows.read("models", model, "status")))

    async def start_model(self, model: str) -> Document:
        """Asks the workers to load a model; returns its status."""
        return dict(await self._do(self._flows.post("models", model, "start")))

    async def stop_model(self, model: str) -> Document:
        """Asks the workers to unload a model; returns its status."""
        return dict(await self._do(self._flows.post("models", model, "stop")))

    async def ready(self) -> Document:
        """The readiness document. Its ``models`` holds the number of live workers per model."""
        return dict(await self._do(self._flows.ready()))

    async def _do(self, flow: Flow[T]) -> T:
        return await self._wire.run(flow)

    def _job(self, document: Document) -> AsyncJob:
        return AsyncJob(self._wire, self._flows, document)


async def _with_shared(
    rows: Iterable[Mapping[str, Any]] | AsyncIterable[Mapping[str, Any]], shared: Mapping[str, Any]
) -> AsyncIterator[Mapping[str, Any]]:
    if isinstance(rows, AsyncIterable):
        async for row in rows:
            yield {**shared, **row}
    else:
        for row in rows:
            yield {**shared, **row}
