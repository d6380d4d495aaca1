"""The command line, in the process of the test or in one of its own."""

from __future__ import annotations

import os
import subprocess
from unittest import mock

from typer.testing import CliRunner

from modelmill import processes
from modelmill.settings import get_settings
from modelmill_cli.app import app
from modelmill_cli.console import err, out

WIDTH = 400
"""Columns of the terminal that the commands see: no line is broken."""


def modelmill(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in a process of its own, as a user does."""
    return subprocess.run(
        processes.python("-m", "modelmill_cli", *arguments),
        env=os.environ | {"COLUMNS": str(WIDTH), "OMP_NUM_THREADS": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def modelmill_here(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs a command in this process: a process of its own spends a second with imports.

    The environment is restored afterwards. An exception that the command does not handle is raised.
    """
    width = int(environment.get("COLUMNS", WIDTH))
    get_settings.cache_clear()
    try:
        with (
            mock.patch.dict(os.environ, environment),
            mock.patch.object(out, "_width", width),
            mock.patch.object(err, "_width", width),
        ):
            result = CliRunner().invoke(app, arguments)
    finally:
        get_settings.cache_clear()
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return subprocess.CompletedProcess(arguments, result.exit_code, result.stdout, result.stderr)
