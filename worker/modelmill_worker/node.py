"""One node: a Celery worker with one prefork child. Started as ``python -P -m modelmill_worker.node``.

It exists because the ``celery`` command puts the working directory first on ``sys.path``. A user's own file
there, such as ``celery.py``, ``redis.py`` or ``modelmill.py``, would then hide the package of the same
name. For the same reason it runs with ``-P``, its child gets ``PYTHONSAFEPATH``, and ``modelmill.broker``
sets a loader.
"""

from __future__ import annotations

import logging
import sys
import warnings


def main() -> int:
    """Runs the node until SIGTERM. Returns Celery's exit status.

    The import of the application ends this process with status 2 if the configuration cannot be used.
    """
    from modelmill.errors import ConfigError
    from modelmill.extras import naming_extras

    try:
        with naming_extras():
            from celery.exceptions import SecurityWarning

            from modelmill_worker.app import app, node_name
    except ConfigError as error:
        sys.stderr.write(f"{error}\n")
        return 2

    # Celery warns that root would read pickles. This application accepts JSON only.
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
