"""Bounds on the JSON of a request body, checked before it is parsed.

A value of two bytes, such as ``1,``, takes some hundred bytes when it is parsed. So the number of values is
bounded, and not only the size of the body. Depth and the length of numbers are bounded by the parser: 200
levels, 4,300 digits.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from modelmill.errors import ErrorCode, ModelmillError

MAX_KEYS = 50_000
"""Keys that a request body may hold, on all levels together."""
MAX_ELEMENTS = 1_100_000
"""Values that a request body may hold, whatever its task says.

The largest bodies that the tasks allow need so many: a table of 100 × 10,000 cells, or 1,024 items with 1,000
classes each.
"""
FEW = 256
"""So many separators need no exact count."""

_KEY = re.compile(rb'"[ \t\r\n]*:')
_STRUCTURE = b'",[{'
_OTHER_BYTES = bytes(set(range(256)) - set(_STRUCTURE))


def check_body(body: bytes | str, most_elements: int) -> None:
    """Refuses a body with too many keys or values. The time grows with the body's size only.

    Args:
        body: JSON.
        most_elements: Values that the body may hold, those of its keys not counted.

    Raises:
        ModelmillError: ``invalid_input``.
    """
    data = body.encode(errors="surrogatepass") if isinstance(body, str) else body
    # A key takes five bytes and a value two, so a body of this size cannot hold too many.
    if len(data) <= 2 * MAX_KEYS or all(_has_few(data, mark) for mark in (b":", b",", b"[", b"{")):
        # Nearly all other bodies hold little but a picture or a text.
        return
    # A body has at most as many keys as colons, and colons are counted fast. Each unknown key becomes an
    # error of its own: two million of them took 2 GiB and 13 s.
    if data.count(b":") > MAX_KEYS and next(islice(_KEY.finditer(data), MAX_KEYS, None), None) is not None:
        raise ModelmillError(
            ErrorCode.INVALID_INPUT, f"The body holds more than {MAX_KEYS} keys; no task needs so many."
        )
    most = most_elements + MAX_KEYS
    if _separators(data) > most and _has_more_elements(data, most):
        raise ModelmillError(
            ErrorCode.INVALID_INPUT,
            f"The body holds more than {most_elements} values, which is more than this task can use. "
            "Send fewer items, or shorter lists.",
        )


def most_elements(schema: Mapping[str, Any], without: frozenset[str] = frozenset()) -> int:
    """How many values an object of this JSON schema can hold, at most ``MAX_ELEMENTS``.

    Args:
        schema: As pydantic writes it.
        without: Properties that do not count.
    """
    properties = {name: part for name, part in schema["properties"].items() if name not in without}
    return _most({"type": "object", "properties": properties}, schema.get("$defs", {}), depth=0)


def json_size(value: Any, limit: int) -> int:
    """About how many bytes a value has as JSON, and never more than it has. Stops above ``limit``."""
    size, waiting = 0, [value]
    while waiting and size <= limit:
        part = waiting.pop()
        if isinstance(part, str):
            size += 2 + len(part)
        elif isinstance(part, dict):
            size += 1 + 4 * len(part) + sum(map(len, part))
            waiting.extend(part.values())
        elif isinstance(part, list):
            size += 1 + len(part)
            waiting.extend(part)
        else:
            size += 1
    return size


def _has_few(data: bytes, mark: bytes) -> bool:
    """Whether a byte occurs at most ``FEW`` times. Searching is ten times as fast as counting."""
    place = -1
    for _ in range(FEW):
        place = data.find(mark, place + 1)
        if place < 0:
            return True
    return False


def _separators(data: bytes) -> int:
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _has_more_elements(data: bytes, most: int) -> bool:
    """Counts again without the insides of strings."""
    # First the escapes of each string go: a backslash, and a quote that does not end the string.
    bare = data.replace(b"\\\\", b"").replace(b'\\"', b"").translate(None, delete=_OTHER_BYTES)
    if bare.count(b'"') > 2 * (most + MAX_KEYS):
        # Each string is a value or a key.
        return True
    return _separators(b"".join(bare.split(b'"')[::2])) > most


def _most(schema: Any, definitions: Mapping[str, Any], depth: int) -> int:
    """The values inside of a value of this schema."""
    if not isinstance(schema, Mapping) or depth > 20:
        return MAX_ELEMENTS
    if "$ref" in schema:
        return _most(definitions.get(str(schema["$ref"]).rpartition("/")[2]), definitions, depth + 1)
    choices = [part for name in ("anyOf", "oneOf", "allOf") for part in schema.get(name, ())]
    found = max((_most(part, definitions, depth + 1) for part in choices), default=0)
    kind = schema.get("type")
    if kind == "array":
        items = schema.get("items", schema.get("prefixItems"))
        each = 1 + (_most(items, definitions, depth + 1) if isinstance(items, Mapping) else MAX_ELEMENTS)
        found = max(found, 1 + int(schema.get("maxItems", MAX_ELEMENTS)) * each)
    elif kind == "object":
        parts = schema.get("properties", {}).values()
        found = max(found, 1 + sum(1 + _most(part, definitions, depth + 1) for part in parts))
        if (more := schema.get("additionalProperties")) not in (None, False):
            each = 1 + _most(more, definitions, depth + 1)
            found += int(schema.get("maxProperties", MAX_KEYS)) * each
    elif kind is None and not choices and not {"const", "enum"} & schema.keys():
        return MAX_ELEMENTS
    return min(found, MAX_ELEMENTS)
