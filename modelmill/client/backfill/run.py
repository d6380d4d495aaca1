"""One backfill, from its arguments to its summary."""

from __future__ import annotations

import asyncio
import difflib
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Literal, TypedDict, TypeVar, Unpack

from modelmill.client.backfill.bulk_api import Backoff, BulkApi
from modelmill.client.backfill.engine import Engine, Options
from modelmill.client.backfill.journal import Journal, Plan
from modelmill.client.backfill.mapping import Mapper
from modelmill.client.backfill.schema import TaskSchema
from modelmill.client.backfill.sources import RowSource, open_source, pyarrow_parquet
from modelmill.client.backfill.stats import Stats, Summary
from modelmill.client.wire import Connection
from modelmill.errors import ConfigError, ErrorCode, ModelmillError

LANES = ("interactive", "normal", "bulk")
MAX_TTL_S = 30 * 86_400

T = TypeVar("T")
Input = str | Path | Sequence[str | Path] | Iterable[Mapping[str, Any]]


class How(TypedDict, total=False):
    """The arguments of ``backfill_async`` that have defaults."""

    map: Mapping[str, str] | None
    set: Mapping[str, Any] | None
    assignments: Sequence[str]
    lane: str
    tags: Sequence[str]
    result_ttl_s: int | None
    output_format: Literal["jsonl", "parquet"]
    shard_rows: int
    resume: bool
    key: str
    window: int
    retries: int
    max_error_rate: float
    give_up_after_s: float
    on_progress: Callable[[Stats], None] | None


async def backfill_async(
    connection: Connection,
    task: str,
    model: str,
    input: Input,
    *,
    output: str | Path,
    map: Mapping[str, str] | None = None,  # noqa: A002 - named as on the command line
    set: Mapping[str, Any] | None = None,  # noqa: A002
    assignments: Sequence[str] = (),
    lane: str = "bulk",
    tags: Sequence[str] = (),
    result_ttl_s: int | None = None,
    output_format: Literal["jsonl", "parquet"] = "jsonl",
    shard_rows: int = 100_000,
    resume: bool = False,
    key: str = "",
    window: int = 256,
    retries: int = 2,
    max_error_rate: float = 0.05,
    give_up_after_s: float = 300.0,
    on_progress: Callable[[Stats], None] | None = None,
) -> Summary:
    """Sends every row of an input through a model, and writes the results to a folder.

    Args:
        connection: Where the API answers, and the caller's key.
        task: Name of the task.
        model: Name of the model.
        input: A file, folder or pattern, several of them, or rows as mappings; see ``sources.open_source``.
        output: The folder for shards and manifest.
        map: Fields, dotted where one lies within another, and the column of each. A column named as a field
            is that field's anyway.
        set: Fields that are the same for all rows.
        assignments: The same as text: ``classes=cat,dog``, ``config.top_k:=3``, ``image=@photo.jpg``.
        lane: Of the jobs.
        tags: Of the jobs.
        result_ttl_s: How long the server keeps results that nobody collected; its default when not set.
        output_format: ``jsonl``, or ``parquet``, which needs the extra of that name.
        shard_rows: Rows of one output file.
        resume: Go on where an earlier run into this folder stopped, if there is one.
        key: Names rows that a program gives; only with it can such a run be resumed.
        window: Rows between input and output at most.
        retries: How often a job that failed for a reason that may pass is submitted again.
        max_error_rate: The run stops when more than this part of its rows has failed, once a hundred rows
            are done; 1 never stops it.
        give_up_after_s: It also stops when there was no answer from the server for so long.
        on_progress: Called a few times a second.

    Returns:
        How it ended. Failed rows are in the output and raise nothing.

    Raises:
        ConfigError: input, fields or output cannot be used; nothing was sent.
        ModelmillError: the server refuses the run, or does not answer for too long. What is done is in the
            output, and the run can be resumed.
        OSError: the output cannot be written. The same holds.
    """
    options = Options(window, retries, max_error_rate, give_up_after_s)
    job = _job_fields(lane, tags, result_ttl_s)
    if output_format == "parquet":
        pyarrow_parquet()
    source = open_source(input, key)
    if resume and source.is_of_caller and not key:
        raise ConfigError("rows of a program can be resumed only if a key names them, the same each time")
    backoff = Backoff(give_up_after_s)
    async with BulkApi(connection, backoff) as api:
        schema = await _schema_of(api, task, model)
        mapper = Mapper(
            schema,
            columns=map or {},
            constants=set or {},
            assignments=assignments,
            job=job,
        )
        plan = Plan(task, model, source.fingerprint(), mapper.pinned(), output_format)
        journal, stats = Journal(Path(output), plan, schema.result, shard_rows), Stats()
        with closing(journal):
            journal.open(stats, resume=resume)
            if journal.is_complete:
                return _summary(journal, stats, "complete", "")
            await asyncio.to_thread(source.prepare, Path(output))
            first = source.first()
            if first is not None:
                mapper.check(first, is_file=source.is_files)
            journal.begin(stats)
            _count_aside(source, stats)
            engine = Engine(
                (task, model),
                api=api,
                backoff=backoff,
                source=source,
                mapper=mapper,
                journal=journal,
                stats=stats,
                options=options,
                on_progress=on_progress,
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
    **how: Unpack[How],
) -> Summary:
    """``backfill_async`` for programs that do not use asyncio, with the same arguments.

    Ctrl-C stops it in order: what is done is written down, and the run can be resumed.
    """
    return _run(backfill_async(connection, task, model, input, output=output, **how))


def _job_fields(lane: str, tags: Sequence[str], result_ttl_s: int | None) -> dict[str, Any]:
    """What every job bears. Looked at here, since each row would be refused for it."""
    if lane not in LANES:
        raise ConfigError(f"there is no lane {lane!r}; there are {', '.join(LANES)}")
    if len(tags) > 16 or not all(1 <= len(tag) <= 64 for tag in tags):
        raise ConfigError("there can be 16 tags, each of 1 to 64 characters")
    if result_ttl_s is not None and not 1 <= result_ttl_s <= MAX_TTL_S:
        raise ConfigError("results can be kept for 1 second to 30 days")
    given = {"tags": list(tags) or None, "result_ttl": result_ttl_s}
    return {"lane": lane, **{name: value for name, value in given.items() if value is not None}}


def _run(work: Coroutine[Any, Any, T]) -> T:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    # A notebook runs a loop of its own in this thread.
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


def _count_aside(source: RowSource, stats: Stats) -> None:
    """Counts the rows while the run goes on already. The thread is left to itself when the run ends first."""

    def count() -> None:
        try:
            stats.total = source.count()
        except (OSError, ConfigError):
            stats.total = None  # the run itself will come to the same place, and say so

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
        shards=journal.shards,
        seconds=seconds,
        rows_per_s=(stats.done - stats.resumed_at) / seconds,
    )
