"""Commands on jobs: ``submit``, ``job``, ``jobs``, ``cancel``, ``delete`` and ``events``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from modelmill_cli.options import (
    DEFAULT_URL,
    AsJson,
    JobId,
    LaneName,
    Model,
    Task,
    Url,
    Wait,
    WaitTimeout,
    show_errors,
    split,
)


@show_errors
def submit(
    task: Task,
    model: Model,
    image: Annotated[
        list[Path] | None, typer.Option(help="An image file; several make a batched job.", exists=True)
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="A text; several make a batched job.")] = None,
    classes: Annotated[str, typer.Option(help="Classes, separated by commas.")] = "",
    config: Annotated[str, typer.Option(help="The task's config, as JSON.")] = "",
    lane: LaneName = "",
    wait: Wait = False,
    timeout_s: WaitTimeout = 600.0,
    as_json: AsJson = False,
    url: Url = DEFAULT_URL,
) -> None:
    """Submit a job."""
    from modelmill_cli.jobs import submit_job

    submit_job(
        url, task, model, images=image or [], texts=text or [], classes=split(classes), config=config,
        lane=lane, timeout_s=timeout_s if wait else None, as_json=as_json,
    )  # fmt: skip


@show_errors
def job(id: JobId, wait: Wait = False, timeout_s: WaitTimeout = 600.0, url: Url = DEFAULT_URL) -> None:
    """Show a job as JSON."""
    from modelmill_cli.jobs import show_job

    show_job(url, id, timeout_s if wait else None)


@show_errors
def jobs(
    task: Annotated[str, typer.Option(help="Only jobs of this task.")] = "",
    model: Annotated[str, typer.Option(help="Only jobs of this model.")] = "",
    status: Annotated[str, typer.Option(help="starting, running, complete, failed or canceled.")] = "",
    tag: Annotated[str, typer.Option(help="Only jobs with this tag.")] = "",
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 20,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    from modelmill_cli.jobs import list_jobs

    only: dict[str, str] = {"task": task, "model": model, "status": status, "tag": tag}
    list_jobs(url, limit, {name: value for name, value in only.items() if value})


@show_errors
def cancel(id: JobId, url: Url = DEFAULT_URL) -> None:
    """Cancel a job: at once while it waits, between two steps while it runs."""
    from modelmill_cli.jobs import cancel_job

    cancel_job(url, id)


@show_errors
def delete(id: JobId, url: Url = DEFAULT_URL) -> None:
    """Remove a job and its result. If the job has not ended, cancel it first."""
    from modelmill_cli.jobs import delete_job

    delete_job(url, id)


@show_errors
def events(
    id: JobId,
    after: Annotated[str | None, typer.Option(help="Only events after the one with this id.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what happens to a job until it ends, one line of JSON per event."""
    from modelmill_cli.jobs import follow_job

    follow_job(url, id, after)
