"""JSON objects of a text, one after the other: in an array, or with or without commas between them.

Few characters are in memory at a time: the value that is being read, and one block.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Any

from modelmill.formats.encodings import InputError

BLOCK_CHARACTERS = 256 * 1024
_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')
_BETWEEN = re.compile(r"[\s,]*")
_SCALAR = re.compile(r"[^\s,\]]+")
_ANY = re.compile(r".", re.DOTALL)
_ARRAY_BEGIN = re.compile(r"[\s\ufeff]*\[")


class Layout(StrEnum):
    """How a JSON text holds its rows."""

    LINES = "lines"
    """One value in each line."""
    VALUES = "values"
    """Values of several lines, one after the other."""
    ARRAY = "array"
    """One array of all values."""


class Unreadable:
    """Stands for a value that is no JSON, or is too long.

    Attributes:
        problem: What is wrong with it, such as ``is too long``.
    """

    def __init__(self, problem: str) -> None:
        self.problem = problem


def layout_of(head: str, *, is_whole: bool) -> Layout:
    """The layout of a JSON text.

    Args:
        head: Its beginning.
        is_whole: Whether that is all of it.
    """
    start = head.lstrip("\ufeff \t\r\n")
    if start.startswith("[") and (start[1:].lstrip() or "]")[0] in "{]":
        # Lines that are arrays themselves are no rows, but each is refused for itself.
        return Layout.ARRAY
    line = re.split(r"[\r\n]", start, maxsplit=1)[0].rstrip()
    if not start.startswith("{"):
        return Layout.LINES
    line = line.rstrip(",")
    try:
        json.loads(line)
    except json.JSONDecodeError as error:
        is_open = error.pos >= len(line)
        is_followed = error.msg == "Extra data" and line[error.pos :].lstrip(" \t,").startswith("{")
    except (ValueError, RecursionError):
        return Layout.LINES
    else:
        return Layout.LINES
    if is_open and is_whole:
        try:
            first = next(json_values(_once(start), "", limit=len(start)), None)
        except InputError:
            return Layout.LINES
        return Layout.LINES if isinstance(first, Unreadable) else Layout.VALUES
    return Layout.VALUES if is_open or is_followed else Layout.LINES


def json_values(
    read: Callable[[int], str], name: str, *, limit: int, is_array: bool = False
) -> Iterator[Any]:
    """The values of a text.

    Args:
        read: Reads up to so many characters; empty at the end.
        name: The file's name, for messages.
        limit: A longer value comes as ``Unreadable``, and is not kept.
        is_array: Whether the text is one array.

    Raises:
        InputError: the text ends in a value or in the array, or text follows the array.
    """
    reader = _Reader(read, limit)
    is_open = False
    number = 0
    if is_array:
        reader.skip(_ARRAY_BEGIN)
        is_open = True
    while reader.skip(_BETWEEN):
        if is_open and reader.next() == "]":
            is_open = False
            reader.advance()
            if reader.skip(_BETWEEN):
                raise InputError(f"{name}, after row {number}: text follows the end of the array")
            break
        text, is_ended = reader.value()
        if not is_ended:
            raise InputError(f"{name}, row {number}: ends in the middle of a value", is_cut=True)
        yield _parsed(text)
        number += 1
    if is_open:
        raise InputError(f"{name}, after row {number}: the array does not end", is_cut=True)


def _parsed(text: str | None) -> Any:
    if text is None:
        return Unreadable("is too long")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return Unreadable("is not valid JSON")


def _once(text: str) -> Callable[[int], str]:
    pieces = [text]
    return lambda _: pieces.pop() if pieces else ""


class _Reader:
    def __init__(self, read: Callable[[int], str], limit: int) -> None:
        self._read, self._limit = read, limit
        self._text, self._at = "", 0
        self._kept: list[str] = []
        self._size = 0

    def next(self) -> str:
        return self._text[self._at]

    def advance(self) -> None:
        self._at += 1

    def skip(self, pattern: re.Pattern[str]) -> bool:
        """Skips what matches. Returns whether text follows."""
        while True:
            match = pattern.match(self._text, self._at)
            if match is not None:
                self._at = match.end()
            if self._at < len(self._text):
                return True
            if not self._more():
                return False

    def value(self) -> tuple[str | None, bool]:
        """The text of the next value, None if it is too long; and whether the value ends."""
        self._kept.clear()
        self._size = 0
        is_ended = self._nested() if self.next() in '"{[' else self._scalar()
        return (None if self._size > self._limit else "".join(self._kept)), is_ended

    def _nested(self) -> bool:
        depth, in_string = 0, False
        while found := self._seek(_INSIDE if in_string else _OUTSIDE):
            if found == "\\":
                self._seek(_ANY)
            elif found == '"':
                in_string = not in_string
            else:
                depth += 1 if found in "{[" else -1
            if depth <= 0 and not in_string:
                return True
        return False

    def _scalar(self) -> bool:
        # At least one character: a bracket that closes nothing is a wrong value of its own.
        self._take(self._at + 1)
        while True:
            match = _SCALAR.match(self._text, self._at)
            if match is not None:
                self._take(match.end())
            if self._at < len(self._text) or not self._more():
                return True

    def _seek(self, pattern: re.Pattern[str]) -> str:
        """Takes all up to the next match. Returns the match; empty at the end of the text."""
        while True:
            match = pattern.search(self._text, self._at)
            if match is not None:
                self._take(match.end())
                return match[0]
            self._take(len(self._text))
            if not self._more():
                return ""

    def _take(self, end: int) -> None:
        self._size += end - self._at
        if self._size <= self._limit:
            self._kept.append(self._text[self._at : end])
        else:
            self._kept.clear()
        self._at = end

    def _more(self) -> bool:
        """Reads the next block in place of the present one."""
        self._text, self._at = self._read(BLOCK_CHARACTERS), 0
        return bool(self._text)
