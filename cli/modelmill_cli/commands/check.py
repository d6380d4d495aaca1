"""The command ``check``."""

from __future__ import annotations

from typing import Annotated

import typer

from modelmill_cli.options import show_errors


@show_errors
def check(
    package: Annotated[str, typer.Argument(help="An installed plugin, by the name that pip knows.")],
    traceback: Annotated[bool, typer.Option("--traceback", help="Show where each check failed.")] = False,
) -> None:
    """Check that a plugin's runners keep their contract, with the specimens of the plugin."""
    from modelmill_cli.check import check_package

    raise typer.Exit(check_package(package, with_traceback=traceback))
