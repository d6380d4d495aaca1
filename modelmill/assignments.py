"""``FIELD=VALUE`` as users write it, on the command line and for a backfill."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from modelmill.errors import ConfigError

FIELD = r"[A-Za-z_]\w*(?:\.\w+)*"
"""A field's name. A dot names a field inside another, such as ``config.top_k``."""
_ASSIGNMENT = re.compile(rf"({FIELD})(:?=)(@?)(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Assignment:
    """The parts of ``FIELD=VALUE``, ``FIELD:=JSON``, ``FIELD=@FILE`` or ``FIELD:=@FILE``.

    Attributes:
        field: The field's name, with dots.
        text: The value, or the path of the file that holds it.
        is_json: Whether the value is JSON.
        is_file: Whether ``text`` is a path.
    """

    field: str
    text: str
    is_json: bool
    is_file: bool


def parse_assignment(text: str) -> Assignment | None:
    """The parts of an assignment; None if the text is not one."""
    match = _ASSIGNMENT.fullmatch(text)
    if match is None:
        return None
    field, sign, at, value = match.groups()
    return Assignment(field, value, is_json=sign == ":=", is_file=bool(at))


def parse_json(field: str, text: str) -> Any:
    """The value after ``FIELD:=``.

    Raises:
        ConfigError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{field}: the text after := is not JSON: {error}") from None


def put(fields: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Sets a field, or one inside another, whose names are ``path``.

    Raises:
        ConfigError: one of the outer fields already has a value that is not an object.
    """
    for part in path[:-1]:
        fields = fields.setdefault(part, {})
        if not isinstance(fields, dict):
            raise ConfigError(f"{'.'.join(path)}: {part} was given a value of its own")
    fields[path[-1]] = value
