"""The command ``models``, and ``models pull``."""

from __future__ import annotations

from typing import Annotated

import typer

from modelmill_cli.options import DEFAULT_URL, ModelsFile, Url, set_environment, show_errors

app = typer.Typer(invoke_without_command=True)


@app.callback()
@show_errors
def models(
    context: typer.Context,
    every: Annotated[
        bool, typer.Option("--all", help="Show which models this machine can run. Asks no server.")
    ] = False,
    task: Annotated[str, typer.Option(help="With --all: only models that answer this task.")] = "",
    as_json: Annotated[bool, typer.Option("--json", help="With --all: print JSON only.")] = False,
    models_file: ModelsFile = None,
    url: Url = DEFAULT_URL,
) -> None:
    """List the models. If a server answers, show the status of each."""
    set_environment(models_file=models_file)
    if context.invoked_subcommand is not None:
        return
    from modelmill.settings import get_settings
    from modelmill_cli.models_file import check_models_file

    check_models_file(get_settings().models_file, has_runners=every or as_json or bool(task))
    if every or as_json or task:
        from modelmill_cli.models import show_catalogue

        show_catalogue(task or None, as_json=as_json)
    else:
        from modelmill_cli.jobs import list_models

        list_models(url)


@app.command()
@show_errors
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help="Names, aliases or hub ids.")],
    models_file: ModelsFile = None,
) -> None:
    """Download the weights of models from the hub, so that loading them downloads nothing."""
    from modelmill_cli.models import pull_models

    set_environment(models_file=models_file)
    pull_models(names)
