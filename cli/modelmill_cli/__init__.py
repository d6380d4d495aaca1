"""The command line ``modelmill``. It may import all other packages; none of them imports it."""

from __future__ import annotations

import sys


def main() -> None:
    """Runs ``modelmill``."""
    try:
        import rich  # noqa: F401
        import typer  # noqa: F401
    except ImportError:
        sys.exit("The command line is not installed. Install it with: pip install 'modelmill[cli]'")
    from modelmill_cli.app import app
    from modelmill_cli.console import escape_what_cannot_be_shown

    escape_what_cannot_be_shown()
    app()
