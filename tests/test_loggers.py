"""Pytest may look at all loggers while another thread makes one."""

from __future__ import annotations

import logging


def test_a_logger_that_is_made_meanwhile_does_not_end_a_look_at_all_loggers() -> None:
    found = logging.root.manager.loggerDict.values()

    for number, _ in enumerate(found):
        logging.getLogger(f"{__name__}.{number % 3}")

    assert logging.getLogger(f"{__name__}.0") in logging.root.manager.loggerDict.values()
