"""One node: a Celery worker with one prefork child. Started as ``python -P -m modelmill_worker.node``.

Its own entry point, because ``celery -A`` puts the working directory first on ``sys.path``, where a
user's own ``tasks.py`` would hide ours.
"""

from __future__ import annotations

import logging
import sys
import warnings

from celery.exceptions import SecurityWarning


def main() -> int:
    """Runs the node until it is told to stop; the exit status is Celery's."""
    from modelmill.errors import ConfigError

    try:
        from modelmill_worker.app import app
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    from modelmill_worker.app import node_name

    # It warns of pickles sent to root. Nothing but JSON is accepted here.
    warnings.simplefilter("ignore", SecurityWarning)
    worker = app.Worker(
        hostname=node_name(),
        pool="prefork",
        concurrency=1,
        without_gossip=True,
        without_mingle=True,
        loglevel=logging.INFO,
        quiet=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


if __name__ == "__main__":
    sys.exit(main())
