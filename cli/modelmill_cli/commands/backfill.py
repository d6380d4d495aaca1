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
            help="A file (.jsonl, .csv, .parquet), a folder of files, or a pattern such as "
            "'photos/**/*.jpg'. Several are read one after the other.",
        ),
    ],
    output: Annotated[Path, typer.Option(help="The folder for the results.", file_okay=False)],
    constants: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="A field that is the same for all rows: classes=cat,dog, config.top_k=3, or table:={…} "
            "for JSON.",
        ),
    ] = None,
    columns: Annotated[
        list[str] | None,
        typer.Option("--map", metavar="FIELD=COLUMN", help="The column that a field is taken from."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where an earlier run stopped.")] = False,
    window: Annotated[int, typer.Option(min=1, help="Rows between input and output at most.")] = 256,
    lane: LaneName = "bulk",
    tag: Annotated[list[str] | None, typer.Option(help="A tag for the jobs; may be repeated.")] = None,
    output_format: Annotated[
        Literal["jsonl", "parquet"], typer.Option("--format", help="Of the results.")
    ] = "jsonl",
    shard_rows: Annotated[int, typer.Option(min=1, help="Rows of one output file.")] = 100_000,
    retries: Annotated[int, typer.Option(min=0, help="How often a job is tried again that may pass.")] = 2,
    max_error_rate: Annotated[
        float,
        typer.Option(min=0, max=1, help="Stop when more than this part has failed; 1 never stops."),
    ] = 0.05,
    give_up_after_s: Annotated[
        float, typer.Option(help="Stop when the server has not answered for so many seconds.")
    ] = 300.0,
    result_ttl_s: Annotated[
        int | None, typer.Option(help="How long the server keeps what was not collected, in seconds.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the summary as JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Send many rows or files through a model. What is interrupted can be resumed."""
    from modelmill.client.backfill import backfill as run
    from modelmill.client.backfill.mapping import read_columns
    from modelmill.client.wire import Connection
    from modelmill_cli.backfill_display import Display, show_summary

    # A service manager stops it as Ctrl-C does, also where a script started it in the background, whose shell
    # has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    connection = Connection.make(url, None, 60.0, 0, 0)
    display = Display(f"{task} {model}", is_quiet=quiet)
    try:
        with display:
            summary = run(
                connection, task, model, input, output=output, map=read_columns(columns or []),
                assignments=constants or [], lane=lane, tags=tag or [], result_ttl_s=result_ttl_s,
                output_format=output_format, shard_rows=shard_rows, resume=resume, window=window,
                retries=retries, max_error_rate=max_error_rate, give_up_after_s=give_up_after_s,
                on_progress=display.show,
            )  # fmt: skip
    except KeyboardInterrupt:
        err.say(
            ("stopped", "yellow"),
            f": {display.done:,} rows are done. The same command with --resume goes on; jobs that were "
            "submitted already run meanwhile.",
        )
        raise typer.Exit(INTERRUPTED) from None
    show_summary(summary, as_json=as_json)
    raise typer.Exit(0 if summary.state == "complete" else 1)
