"""The blocking client."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, Unpack

from modelmill.client.errors import ApiError
from modelmill.client.flows import Document, Flows, Uploadable
from modelmill.client.jobs import Job
from modelmill.client.many import Batch, Lines, pending_submit, run_many_blocking
from modelmill.client.media import File
from modelmill.client.protocol import Flow
from modelmill.client.wire import MIB, Connection, Wire

if TYPE_CHECKING:
    from modelmill.client.backfill import Input, Summary
    from modelmill.client.backfill.options import BackfillKeywords

T = TypeVar("T")


class Client:
    """A connection to one Modelmill server. May be used by several threads.

    Args:
        url: Where the API answers. If None: ``MODELMILL_URL``, or else port 8000 of this machine.
        api_key: Sent as ``Authorization: Bearer``. If None: ``MODELMILL_API_KEY``.
        timeout_s: The limit for one request, not for a job.
        max_retries: How often a request is sent again if that is safe and can help.
        upload_over_bytes: Larger media are uploaded first and sent as ``file:`` ids.
    """

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
        self._wire = Wire(self._connection)
        self._flows = Flows(self._wire.policy, upload_over_bytes)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes its connections. Jobs continue."""
        self._wire.http.close()

    def run(
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
        """Submits a job, waits for its end, and returns its result.

        Args:
            task: Name of the task.
            model: Name of the model.
            inputs: The task's fields. Values may be of any kind that ``docs/client.md`` lists under media,
                also inside lists and mappings.
            timeout_s: How long to wait for the job's end; without a limit if None.
            batched: Whether it is a batched job. Its batched fields and its result are lists.
            idempotency_key: A second submit with the same key returns the same job.
            fields: The task's fields, by name. They take precedence over ``inputs``.

        Raises:
            ModelmillError: the job was refused, failed or was canceled; ``code`` says why.
            JobTimeoutError: a ``TimeoutError``: the job has not ended after ``timeout_s``. It continues.
        """
        pending, merged = pending_submit(idempotency_key, {**(inputs or {}), **fields})
        return self._do(self._flows.run(task, model, merged, pending, batched=batched, timeout_s=timeout_s))

    def submit(
        self,
        task: str,
        model: str,
        inputs: Mapping[str, Any] | None = None,
        /,
        *,
        batched: bool = False,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Job:
        """Submits a job and does not wait. It takes the arguments of ``run``."""
        pending, merged = pending_submit(idempotency_key, {**(inputs or {}), **fields})
        return self._job(self._do(self._flows.submit(task, model, merged, pending, batched=batched)))

    def map(
        self,
        task: str,
        model: str,
        rows: Iterable[Mapping[str, Any]],
        /,
        *,
        concurrency: int = 16,
        ordered: bool = True,
        return_errors: bool = False,
        timeout_s: float | None = None,
        batched: bool = False,
        **shared: Any,
    ) -> Iterator[Any]:
        """Runs a job for each row, many at once, and yields the results.

        At most ``concurrency`` rows are taken and not yet yielded, so any number of rows fits in memory. If
        you stop early, or if a job raises an error, the jobs in flight are canceled.

        Args:
            task: Name of the task.
            model: Name of the model.
            rows: The fields of each job. A row may have an ``idempotency_key``.
            concurrency: How many jobs run at once.
            ordered: Yield the results in the order of the rows; otherwise ``(index, result)`` as jobs end.
            return_errors: Yield an exception in place of a result, and continue with the other rows.
            timeout_s: The limit for each job.
            batched: Whether they are batched jobs.
            shared: Fields of all rows. The value of a row takes precedence.
        """
        batch = Batch(task, model, timeout_s, batched, return_errors)
        fields = ({**shared, **row} for row in rows)
        return run_many_blocking(self._connection, batch, fields, concurrency, ordered)

    def backfill(
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
        from modelmill.client.backfill import BackfillOptions, backfill

        how = BackfillOptions(**options)
        return backfill(self._connection, task, model, input, output=output, options=how)

    def submit_many(
        self, task: str, model: str, rows: Iterable[Mapping[str, Any]], /, **shared: Any
    ) -> list[Job | ApiError]:
        """Submits many jobs in few requests and does not wait. A refused row is an error in its place.

        Args:
            task: Name of the task.
            model: Name of the model.
            rows: The fields of each job. A row may have an ``idempotency_key``.
            shared: Fields of all rows. The value of a row takes precedence.
        """
        answers: list[Document | ApiError] = []
        lines = Lines()
        for row in rows:
            if due := lines.add(self._do(self._flows.encode_row({**shared, **row}))):
                answers += self._do(self._flows.bulk(task, model, due))
        answers += self._do(self._flows.bulk(task, model, lines.rest()))
        return [answer if isinstance(answer, ApiError) else self._job(answer) for answer in answers]

    def collect(self, ids: Iterable[str], *, wait_s: float = 20, delete: bool = False) -> list[Document]:
        """Waits until at least one of the jobs has ended; returns the documents of all that have.

        If a job does not exist, its document has the status None and an ``error``.

        Args:
            ids: The ids of at most 1000 jobs.
            wait_s: How long to wait for the first end. If no job ends in this time, the list is empty.
            delete: Delete all these jobs instead, ended or not, and return an empty list.
        """
        return self._do(self._flows.collect(ids, int(wait_s), delete))

    def job(self, job_id: str) -> Job:
        """A job by its id, as it is now.

        Raises:
            NotFoundError: the job does not exist, has expired, or belongs to another caller.
        """
        return self._job(self._do(self._flows.ask(job_id)))

    def jobs(
        self,
        *,
        task: str | None = None,
        model: str | None = None,
        status: str | None = None,
        tag: str | None = None,
        limit: int | None = None,
    ) -> Iterator[Job]:
        """Your jobs, newest first, without their results; at most ``limit``."""
        wanted, cursor = {"task": task, "model": model, "status": status, "tag": tag}, None
        left = limit
        while left is None or left > 0:
            page = self._do(self._flows.page(wanted, cursor, left))
            yield from map(self._job, page["jobs"])
            left = None if left is None else left - len(page["jobs"])
            cursor = page["next"]
            if not cursor:
                return

    def upload(self, source: Uploadable, name: str | None = None) -> File:
        """Uploads a file as a stream. Any number of jobs can use it.

        Args:
            source: A path, bytes, or a file open in binary mode, which is read from its start.
            name: Its name on the server; the name of the file if None.
        """
        return self._do(self._flows.upload(source, name))

    def download(self, file: File | str) -> bytes:
        """The bytes of an uploaded file or of a result that is a file."""
        return self._do(self._flows.download(file))

    def delete_file(self, file: File | str) -> None:
        """Deletes an uploaded file."""
        self._do(self._flows.delete_file(file))

    def tasks(self) -> list[str]:
        """Names of the tasks."""
        return list(self._do(self._flows.read("tasks")))

    def models(self, task: str | None = None) -> list[str]:
        """Names of the models, or of those that answer ``task``."""
        parts = ("tasks", task, "models") if task else ("models",)
        return list(self._do(self._flows.read(*parts)))

    def model_tasks(self, model: str) -> list[str]:
        """Names of the tasks that ``model`` answers."""
        return list(self._do(self._flows.read("models", model, "tasks")))

    def model_status(self, model: str) -> Document:
        """The status of ``model`` on the workers that serve it."""
        return dict(self._do(self._flows.read("models", model, "status")))

    def start_model(self, model: str) -> Document:
        """Asks the workers to load a model; returns its status."""
        return dict(self._do(self._flows.post("models", model, "start")))

    def stop_model(self, model: str) -> Document:
        """Asks the workers to unload a model; returns its status."""
        return dict(self._do(self._flows.post("models", model, "stop")))

    def ready(self) -> Document:
        """The readiness document. Its ``models`` holds the number of live workers per model."""
        return dict(self._do(self._flows.ready()))

    def _do(self, flow: Flow[T]) -> T:
        return self._wire.run(flow)

    def _job(self, document: Document) -> Job:
        return Job(self._wire, self._flows, document)
