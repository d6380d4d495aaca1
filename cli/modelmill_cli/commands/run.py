"""Commands that need no server: ``run`` and ``tasks``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from modelmill_cli.options import ModelsFile, set_environment, show_errors


@show_errors
def run(
    task: Annotated[str, typer.Argument(help="For example text-embedding.")],
    model: Annotated[str, typer.Argument(help="A model's name, its hub id, or a folder.")],
    fields: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FIELD=VALUE...",
            help="The task's fields: text=hello, image=@cat.jpg for a file, config.top_k=3 for a field "
            "inside another, table:={…} for JSON. Give a field several times for a list, or for several "
            "items.",
        ),
    ] = None,
    device: Annotated[Literal["cpu", "cuda"] | None, typer.Option(help="The CPU when not set.")] = None,
    models_file: ModelsFile = None,
) -> None:
    """Run a model in this process, without a server, and print its answer as JSON."""
    from modelmill_cli.run import run_task

    set_environment(models_file=models_file, device=device)
    run_task(task, model, fields or [])


@show_errors
def tasks(task: Annotated[str, typer.Argument(help="Show the fields of this task.")] = "") -> None:
    """List the tasks, or the fields of one."""
    from modelmill_cli.run import list_tasks, show_task

    show_task(task) if task else list_tasks()
