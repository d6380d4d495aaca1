"""Commands on jobs that a server has: ``jobs``, ``cancel``, ``delete`` and ``events``."""

from __future__ import annotations

from typing import Annotated

import typer

from modelmill_cli.app import DEFAULT_URL, Url, app, for_people


@app.command()
@for_people
def jobs(
    task: Annotated[str, typer.Option(help="Only of this task.")] = "",
    model: Annotated[str, typer.Option(help="Only of this model.")] = "",
    status: Annotated[str, typer.Option(help="starting, running, complete, failed or canceled.")] = "",
    tag: Annotated[str, typer.Option(help="Only with this tag.")] = "",
    limit: Annotated[int, typer.Option(help="How many at most.", min=1)] = 20,
    url: Url = DEFAULT_URL,
) -> None:
    """List jobs, newest first."""
    from modelmill_cli.jobs import list_jobs

    only: dict[str, str] = {"task": task, "model": model, "status": status, "tag": tag}
    list_jobs(url, limit, {name: value for name, value in only.items() if value})


@app.command()
@for_people
def cancel(
    id: Annotated[str, typer.Argument(help="The job's id.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Cancel a job: at once while it waits, between two steps while it runs."""
    from modelmill_cli.jobs import cancel_job

    cancel_job(url, id)


@app.command()
@for_people
def delete(
    id: Annotated[str, typer.Argument(help="The job's id.")],
    url: Url = DEFAULT_URL,
) -> None:
    """Remove a job and its result; one that has not ended is canceled first."""
    from modelmill_cli.jobs import delete_job

    delete_job(url, id)


@app.command()
@for_people
def events(
    id: Annotated[str, typer.Argument(help="The job's id.")],
    after: Annotated[str | None, typer.Option(help="Only those after the event with this id.")] = None,
    url: Url = DEFAULT_URL,
) -> None:
    """Show what happens to a job until it has ended, one line of JSON an event."""
    from modelmill_cli.jobs import follow_job

    follow_job(url, id, after)
