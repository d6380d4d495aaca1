"""Logging of the processes that this project starts: one line for each event, to standard error."""

from __future__ import annotations

import logging
import os
import sys


def configure_logging(level: str) -> None:
    """Sends all loggers to standard error, and silences libraries that log every message."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter(f"%(asctime)s %(levelname)s [{os.getpid()}] %(name)s: %(message)s")
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name in ("celery.worker.strategy", "celery.app.trace", "httpx", "httpcore"):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLevelName(level)))
    # It has a warning for each upload that is malformed, and the client gets that as its answer.
    logging.getLogger("python_multipart").setLevel(logging.ERROR)
