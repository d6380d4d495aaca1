"""The command line ``modelmill``. It may import all other packages; none of them imports it."""

from __future__ import annotations

import io
import sys

from modelmill.extras import MissingExtraError, naming_extras


def main() -> None:
    """Runs ``modelmill``."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A name that the terminal cannot show must not end a command, such as "cät" where LANG is C.
            stream.reconfigure(errors="backslashreplace")
    try:
        with naming_extras():
            from modelmill_cli.app import app
    except MissingExtraError as error:
        sys.exit(f"The command line is not complete. {error}")
    app()
