"""The command line ``modelmill``. It may import all other packages; none of them imports it."""

from __future__ import annotations

import sys

from modelmill.extras import MissingExtraError, naming_extras


def main() -> None:
    """Runs ``modelmill``."""
    try:
        with naming_extras():
            from modelmill_cli.app import app
            from modelmill_cli.console import escape_what_cannot_be_shown
    except MissingExtraError as error:
        sys.exit(f"The command line is not complete. {error}")
    escape_what_cannot_be_shown()
    app()
