"""The program ``modelmill``: all its commands, in the order in which ``--help`` lists them."""

from __future__ import annotations

import typer

from modelmill_cli.commands import backfill, check, demo, jobs, keys, models, run, serve

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    help="Takes AI jobs over HTTP, queues them, and runs them in batches on workers.",
)

for command in (
    serve.up,
    serve.api,
    serve.worker,
    jobs.submit,
    jobs.job,
    run.run,
    run.tasks,
    check.check,
    demo.demo,
    backfill.backfill,
    jobs.jobs,
    jobs.cancel,
    jobs.delete,
    jobs.events,
):
    app.command()(command)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
