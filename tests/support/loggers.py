"""Keeps pytest's look at all loggers safe while threads of a test make new ones."""

from __future__ import annotations

import logging
from typing import Any


class Loggers(dict[str, Any]):
    """All loggers by name. ``values`` gives a copy.

    Before each phase of a test, pytest goes through the loggers (``catching_logs``). Meanwhile a thread of
    the API under test may import a module that makes one, such as a transport of kombu. With a plain
    dictionary the test then ends with "dictionary changed size during iteration".
    """

    def values(self) -> Any:
        # Atomic: no other thread runs while a list is made of a dictionary's values.
        return list(super().values())


def install() -> None:
    """Puts a ``Loggers`` in the place of logging's own dictionary."""
    manager = logging.root.manager
    manager.loggerDict = Loggers(manager.loggerDict)
