"""The command ``backfill``."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Annotated, Literal

import typer

from modelmill_cli.console import err
from modelmill_cli.options import DEFAULT_URL, LaneName, Model, Task, Url, show_errors

INTERRUPTED = 130
"""The exit status after Ctrl-C."""


@show_errors
def backfill(
    task: Task,
    model: Model,
    input: Annotated[
        list[str],
        typer.Option(
            help="A file (.jsonl, .json, .csv, .tsv, .txt, .parquet), a folder of files, a pattern such as "
            "'photos/**/*.jpg', or - for standard input. May be repeated: inputs are read one after the "
            "other.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The folder for the results.", file_okay=False)],
    constants: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Sets a field for all rows: classes=cat,dog, config.top_k=3, or table:={…} for JSON.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help="Takes a field from this column."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue where an earlier run stopped.")] = False,
    same_input: Annotated[
        bool,
        typer.Option(
            "--same-input", help="With --resume: the input holds the same rows, although it looks different."
        ),
    ] = False,
    input_format: Annotated[
        Literal["jsonl", "json", "csv", "tsv", "text", "parquet", "files"] | None,
        typer.Option(help="What the rows of the input are, if it does not say so itself."),
    ] = None,
    encoding: Annotated[
        str, typer.Option(help="The input's text encoding, if it is not UTF-8: cp1252, gbk, shift_jis, …")
    ] = "",
    delimiter: Annotated[
        str, typer.Option(help="What separates the values of CSV, if it is not clear: a character, or tab.")
    ] = "",
    window: Annotated[int, typer.Option(min=1, help="The most rows between input and output.")] = 256,
    lane: LaneName = "bulk",
    tag: Annotated[list[str] | None, typer.Option(help="A tag for the jobs; may be repeated.")] = None,
    output_format: Annotated[
        Literal["jsonl", "parquet"], typer.Option("--format", help="The format of the results.")
    ] = "jsonl",
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows per output file.")] = 100_000,
    retries: Annotated[
        int, typer.Option(min=0, help="How often to retry a job after a temporary failure.")
    ] = 2,
    max_error_rate: Annotated[
        float,
        typer.Option(min=0, max=1, help="Stop when more than this part of the rows failed; 1 never stops."),
    ] = 0.05,
    give_up_after_s: Annotated[
        float, typer.Option(help="Stop when the server has not answered for this many seconds.")
    ] = 300.0,
    result_ttl_s: Annotated[
        int | None,
        typer.Option(help="How long the server keeps uncollected results, in seconds."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Send many rows or files through a model. An interrupted run can be resumed."""
    from modelmill.client.backfill import BackfillOptions
    from modelmill.client.backfill import backfill as run
    from modelmill.client.backfill.mapping import read_columns
    from modelmill.client.wire import Connection
    from modelmill_cli.backfill_display import Display, show_summary

    # SIGTERM from a service manager stops the run like Ctrl-C. SIGINT gets its handler back because a shell
    # ignores it for a program that a script starts in the background.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    connection = Connection.make(url, timeout_s=60.0)
    display = Display(f"{task} {model}", is_quiet=quiet)
    options = BackfillOptions(
        map=read_columns(columns or []),
        assignments=constants or [],
        lane=lane,
        tags=tag or [],
        result_ttl_s=result_ttl_s,
        output_format=output_format,
        shard_rows=shard_rows,
        resume=resume,
        same_input=same_input,
        input_format=input_format,
        encoding=encoding,
        delimiter=delimiter,
        window=window,
        retries=retries,
        max_error_rate=max_error_rate,
        give_up_after_s=give_up_after_s,
        on_progress=display.show,
    )
    try:
        with display:
            summary = run(connection, task, model, input, output=output, options=options)
    except KeyboardInterrupt:
        err.say(
            ("stopped", "yellow"),
            f": {display.done:,} rows are done. To continue, run the same command with --resume. Jobs that "
            "are already submitted continue to run.",
        )
        raise typer.Exit(INTERRUPTED) from None
    show_summary(summary, as_json=as_json)
    raise typer.Exit(0 if summary.state == "complete" else 1)
