"""Options that several commands share, and how errors are shown. This module imports nothing slow."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Annotated, ParamSpec, TypeVar

import typer

from modelmill.errors import ConfigError, ModelmillError
from modelmill.extras import naming_extras
from modelmill_cli.console import err

P = ParamSpec("P")
R = TypeVar("R")

DEFAULT_URL = "http://127.0.0.1:8000"
Url = Annotated[str, typer.Option("--url", envvar="MODELMILL_URL", help="Where the API answers.")]
ModelsFile = Annotated[
    Path | None, typer.Option(help="Your own models, a TOML file; see docs/models.md.", dir_okay=False)
]
RedisUrl = Annotated[str | None, typer.Option(help="The Redis or Valkey that keeps the jobs.")]
DataDir = Annotated[
    Path | None, typer.Option(help="The data folder of a running `modelmill up`, to use its job store.")
]
Task = Annotated[str, typer.Argument(help="For example zero-shot-image-classification.")]
Model = Annotated[str, typer.Argument(help="For example conse-lite0.")]
JobId = Annotated[str, typer.Argument(help="The job's id.")]
LaneName = Annotated[str, typer.Option(help="interactive, normal or bulk.")]
Wait = Annotated[bool, typer.Option("--wait", help="Wait for the job's end.")]
WaitTimeout = Annotated[float, typer.Option(help="With --wait: how long to wait, in seconds.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON only.")]


def show_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Shows an expected error as a sentence instead of a traceback, and exits with status 1."""

    @functools.wraps(command)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            _warn_about_names()
            with naming_extras():
                return command(*args, **kwargs)
        except ModelmillError as error:
            err.say((error.code.value, "red"), f": {error.message}")
            for field in error.fields[1:]:
                err.say(f"  {field.field}: {field.message}")
        except (ConfigError, TimeoutError, OSError) as error:
            err.say(("error", "red"), f": {error}")
        raise typer.Exit(1)

    return wrapped


def _warn_about_names() -> None:
    """Says which variables have no effect: a misspelt one must not be ignored in silence."""
    others = os.environ.keys() - {"MODELMILL_URL", "MODELMILL_API_KEY"}
    # The full check imports the settings, which is slow. Few users set more than these two.
    if any("MIL" in name.upper() and name.upper().startswith("M") for name in others):
        # Without the packages of a server there are no settings to compare with.
        with suppress(ImportError):
            from modelmill.start_checks import warn_about_names

            warn_about_names(lambda sentence: err.say(("warning", "yellow"), f": {sentence}"))


def set_environment(**values: object) -> None:
    """Turns options into settings of this process and of the processes that it starts."""
    for name, value in values.items():
        if value not in (None, ""):
            os.environ[f"MODELMILL_{name.upper()}"] = str(value)


def split(text: str) -> list[str]:
    """The parts of a text that are separated by commas."""
    return [part.strip() for part in text.split(",") if part.strip()]
