"""Celery's consumer of bells, which waits while the broker refuses messages."""

from __future__ import annotations

import time
from typing import Any

from celery.worker.consumer import Consumer
from redis.exceptions import ResponseError

REFUSED_PAUSE_S = 2.0
"""Pause before the next try, if the broker answers but refuses commands: at its memory limit, for instance.

Celery itself tries five times a second, and logs each of them.
"""


class PatientConsumer(Consumer):
    """Celery's consumer, with that pause."""

    def on_connection_error_before_connected(self, exc: Any) -> None:
        super().on_connection_error_before_connected(exc)
        _pause_after(exc)

    def on_connection_error_after_connected(self, exc: Any) -> None:
        super().on_connection_error_after_connected(exc)
        _pause_after(exc)


def _pause_after(error: Any) -> None:
    if isinstance(error, ResponseError):
        time.sleep(REFUSED_PAUSE_S)
