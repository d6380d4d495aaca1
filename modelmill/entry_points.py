"""What installed plugins add. A plugin that cannot be used is left out, and the rest works."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from importlib.metadata import EntryPoint, entry_points
from typing import TypeVar

from modelmill.errors import ConfigError, ModelmillError

logger = logging.getLogger(__name__)

T = TypeVar("T")


def usable(
    group: str, read: Callable[[EntryPoint], T], left_out: list[str] | None = None
) -> Iterator[tuple[EntryPoint, T]]:
    """The entry points of a group, sorted by name, each with what ``read`` made of it.

    If ``read`` raises, a warning names the entry point, its distribution and the reason, and the entry point
    is left out: one plugin must not stop a server that others use.

    Args:
        group: The group.
        read: Makes an object of an entry point.
        left_out: Receives a sentence for each entry point that is left out.
    """
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, point.value)):
        try:
            found = read(point)
        except Exception as error:
            sentence = f"{described(point)} is left out: {_reason(error)}"
            logger.warning("%s", sentence)
            if left_out is not None:
                left_out.append(sentence)
        else:
            yield point, found


def described(point: EntryPoint) -> str:
    """An entry point in words, with the distribution that it belongs to."""
    owner = f"of {point.dist.name} " if point.dist else ""
    return f"the entry point {point.name!r} {owner}in the group {point.group} ({point.value})"


def _reason(error: Exception) -> str:
    known = isinstance(error, ConfigError | ModelmillError)
    return str(error) if known else f"{type(error).__name__}: {error}"
