"""What every server process checks when it starts, besides the values of its settings."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial

from modelmill.settings import Settings
from modelmill.store.layout import check_layout
from modelmill.store.server_checks import check_server
from modelmill.variables import CHECKED, unknown_names

logger = logging.getLogger(__name__)


def check_start(settings: Settings) -> None:
    """Checks the names of variables and the job store's server. Warnings are logged once for this process
    and those that it starts.

    Raises:
        ConfigError: the job store cannot be used: it loses jobs, or a later release wrote it.
    """
    warn_about_names(partial(logger.warning, "%s"))
    check_layout(settings.redis_url)
    warnings = check_server(settings.redis_url, allow_eviction=settings.allow_eviction)
    if is_first("store"):
        for warning in warnings:
            logger.warning("%s", warning.message)


def warn_about_names(say: Callable[[str], object]) -> None:
    """Calls ``say`` with a sentence for each variable that looks like one of this project's, and has no
    effect: once for this process and those that it starts."""
    if is_first("names"):
        for sentence in unknown_names(os.environ):
            say(sentence)


def is_first(kind: str) -> bool:
    """Whether neither this process nor one that started it has warned about this yet."""
    done = os.environ.get(CHECKED, "").split()
    os.environ[CHECKED] = " ".join(dict.fromkeys([*done, kind]))
    return kind not in done
