"""The command ``demo``."""

from __future__ import annotations

import typer

from modelmill_cli.options import show_errors


@show_errors
def demo() -> None:
    """Start the whole system on this machine, send a photograph through it, and stop it again."""
    from modelmill_cli.demo import run_demo

    raise typer.Exit(run_demo())
