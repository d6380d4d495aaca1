"""One backfill, from its arguments to its summary."""

from __future__ import annotations

import asyncio
import difflib
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any, TypeVar

from modelmill.client.backfill.bulk_api import Backoff, BulkApi
from modelmill.client.backfill.engine import REPORT_S, Engine
from modelmill.client.backfill.journal import Journal, Plan
from modelmill.client.backfill.mapping import Mapper
from modelmill.client.backfill.options import BackfillOptions
from modelmill.client.backfill.parquet import pyarrow_parquet
from modelmill.client.backfill.rows import RowSource
from modelmill.client.backfill.schema import TaskSchema
from modelmill.client.backfill.sources import open_source
from modelmill.client.backfill.stats import Stats, Summary
from modelmill.client.wire import Connection
from modelmill.errors import ConfigError, ErrorCode, ModelmillError

T = TypeVar("T")
CHECKED_BYTES = 64 * 1024 * 1024
"""This much of the input is read before anything is sent, to find what is wrong with it."""
MAX_NOTES = 10
"""So many skipped entries of folders are named."""

Input = str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]]


async def backfill_async(
    connection: Connection,
    task: str,
    model: str,
    input: Input,
    *,
    output: str | Path,
    options: BackfillOptions,
) -> Summary:
    """Sends every row of an input through a model, and writes the results to a folder.

    Args:
        connection: Where the API answers, and the caller's key.
        task: Name of the task.
        model: Name of the model.
        input: A file, a folder or a pattern, several of them, or rows as mappings; see ``open_source``.
        output: The folder for shards and manifest.
        options: How the run is done.

    Returns:
        How it ended. A failed row is in the output and raises nothing.

    Raises:
        InputError: a file of the input cannot be read. Beyond its first ``CHECKED_BYTES``, rows may have been
            sent; then the run can be resumed.
        ConfigError: input, fields or output cannot be used; nothing was sent.
        ModelmillError: the server refuses the run, or does not answer for too long. The finished rows are in
            the output, and the run can be resumed.
        OSError: the output cannot be written. The run can be resumed then, too.
    """
    if options.output_format == "parquet":
        pyarrow_parquet()
    source = await asyncio.to_thread(open_source, input, options.key, options.reading, output)
    if options.resume and source.is_of_caller and not options.key:
        raise ConfigError("rows of a program can be resumed only if a key names them, the same each time")
    backoff, stats = Backoff(options.give_up_after_s), Stats()
    async with BulkApi(connection, backoff) as api:
        async with _reporting(backoff, stats, options.on_progress):
            schema = await _schema_of(api, task, model)
        mapper = Mapper(
            schema,
            columns=options.map or {},
            constants=options.set or {},
            assignments=options.assignments,
            job=options.job_fields,
        )
        plan = Plan(
            task,
            model,
            await asyncio.to_thread(source.fingerprint),
            mapper.pinned(),
            options.output_format,
            (lambda *_: "") if options.same_input else source.difference,
        )
        journal = Journal(Path(output), plan, schema.result, options.shard_rows)
        with closing(journal):
            journal.open(stats, resume=options.resume)
            if journal.is_complete:
                return _summary(journal, stats, "complete", "")
            # A thread that waits for a pipe must not keep the process from ending.
            await _in_daemon(lambda: source.prepare(Path(output)))
            _note_skipped(source, stats)
            if journal.is_new:
                await asyncio.to_thread(source.check, CHECKED_BYTES)
            for first in source.firsts():
                mapper.check(first, is_file=source.is_files)
            journal.begin(stats)
            _count_in_background(source, stats)
            engine = Engine(
                (task, model),
                api=api,
                backoff=backoff,
                source=source,
                mapper=mapper,
                journal=journal,
                stats=stats,
                options=options,
            )
            state, reason = await engine.run()
            return _summary(journal, stats, state, reason)


def backfill(
    connection: Connection,
    task: str,
    model: str,
    input: Input,
    *,
    output: str | Path,
    options: BackfillOptions,
) -> Summary:
    """``backfill_async`` for programs that do not use asyncio, with the same arguments.

    Ctrl-C stops the run in order: it writes a last checkpoint, and the run can be resumed.
    """
    return _run(backfill_async(connection, task, model, input, output=output, options=options))


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # This thread already runs an event loop, as in a notebook.
    outcome: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001, RUF100 - raised again below
            errors.append(error)

    thread = threading.Thread(target=run, name="backfill")
    thread.start()
    thread.join()
    if errors:
        raise errors[0]
    return outcome[0]


async def _schema_of(api: BulkApi, task: str, model: str) -> TaskSchema:
    models = await api.get(f"/api/tasks/{task}/models")
    if model not in models:
        near = difflib.get_close_matches(model, models, n=3, cutoff=0.4) or models[:10]
        raise ModelmillError(
            ErrorCode.MODEL_NOT_FOUND,
            f"There is no model {model!r} for {task}; there are {', '.join(near) or 'none'}.",
        )
    return TaskSchema(await api.get("/openapi.json"), task)


@asynccontextmanager
async def _reporting(
    backoff: Backoff, stats: Stats, on_progress: Callable[[Stats], None] | None
) -> AsyncIterator[None]:
    """Tells the caller meanwhile if the run waits for the server."""

    async def report() -> None:
        while on_progress is not None:
            await asyncio.sleep(REPORT_S)
            stats.trouble = backoff.trouble
            if stats.trouble:
                on_progress(stats)

    task = asyncio.create_task(report())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        stats.trouble = ""


async def _in_daemon(work: Callable[[], None]) -> None:
    """Runs blocking work in a thread that does not outlive the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def settle(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        error: BaseException | None = None
        try:
            work()
        except BaseException as caught:  # noqa: BLE001, RUF100 - raised where it is awaited
            error = caught
        with suppress(RuntimeError):  # the loop is closed: the run was stopped meanwhile
            loop.call_soon_threadsafe(settle, error)

    threading.Thread(target=run, name="backfill-prepare", daemon=True).start()
    await done


def _note_skipped(source: RowSource, stats: Stats) -> None:
    """A resumed run knows these from its manifest: the folder was read when the run began."""
    for path, reason in source.skipped:
        stats.skipped[reason] = stats.skipped.get(reason, 0) + 1
        if len(stats.notes) < MAX_NOTES:
            stats.notes.append(f"skipped {path}: {reason}")


def _count_in_background(source: RowSource, stats: Stats) -> None:
    """Counts the rows while the run is working. The run does not wait for the thread at its end."""

    def count() -> None:
        try:
            stats.total = source.count()
        except (OSError, ConfigError):
            stats.total = None  # the run meets the same error when it reads that row, and reports it

    if source.is_of_caller:
        count()
    else:
        threading.Thread(target=count, name="backfill-count", daemon=True).start()


def _summary(journal: Journal, stats: Stats, state: str, reason: str) -> Summary:
    seconds = time.monotonic() - stats.started
    return Summary(
        state=state,
        reason=reason,
        output=journal.folder,
        run_id=journal.run_id,
        rows=stats.done,
        complete=stats.complete,
        failed=stats.failed,
        errors=dict(stats.errors),
        warnings=dict(stats.warnings),
        skipped=dict(stats.skipped),
        shards=journal.shards,
        seconds=seconds,
        rows_per_s=(stats.done - stats.resumed_at) / seconds,
    )
