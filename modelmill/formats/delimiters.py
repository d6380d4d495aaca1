"""Which character separates the values of a CSV file."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from modelmill.errors import ConfigError
from modelmill.formats.encodings import InputError
from modelmill.formats.names import shown

CANDIDATES = (",", ";", "\t", "|")
SAMPLE_ROWS = 200
_SEP_LINE = re.compile(r'\s*"?sep=([^\r\n])"?[\r\n]*', re.IGNORECASE)
_NAMES = {"tab": "\t", "\\t": "\t", "comma": ",", "semicolon": ";", "space": " ", "pipe": "|"}
_SHOWN = {"\t": "tab", " ": "space"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a file separates its values.

    Attributes:
        delimiter: One character.
        has_sep_line: Whether the first line says so and is no row: ``sep=;``.
        skips_spaces: Whether spaces after a delimiter belong to no value, since the header has them too.
    """

    delimiter: str
    has_sep_line: bool = False
    skips_spaces: bool = False


def read_delimiter(text: str) -> str:
    """The delimiter that a user gives: a character, or a name such as ``tab``; empty if not given.

    Raises:
        ConfigError: it is neither.
    """
    character = _NAMES.get(text.lower(), text)
    if len(character) > 1 or character in ('"', "\r", "\n", "\0"):
        raise ConfigError(f"the delimiter {text!r} is not one character: give , ; | or tab")
    return character


def find_dialect(
    lines: Sequence[str], name: str | Path, *, given: str, is_tsv: bool, is_whole: bool
) -> Dialect:
    """The dialect of a file.

    Args:
        lines: Its first lines with their line ends.
        name: The file's name, for messages.
        given: The delimiter that the caller gives; empty to find it.
        is_tsv: Whether the file's name says that tabs separate the values.
        is_whole: Whether these are all lines. Otherwise the last one may be cut.

    Raises:
        InputError: several delimiters are possible, or with none the rows fit the header.
    """
    match = _SEP_LINE.fullmatch(lines[0]) if lines else None
    body = lines[1:] if match else lines
    said = given or (match[1] if match else "")
    delimiter = said or _choose(body, shown(name), "\t" if is_tsv else ",", is_whole=is_whole)
    return Dialect(delimiter, match is not None, _skips_spaces(body, delimiter))


def _choose(lines: Sequence[str], name: str, usual: str, *, is_whole: bool) -> str:
    tables = {mark: _records(lines, mark, SAMPLE_ROWS) for mark in CANDIDATES}
    for rows in tables.values():
        if not is_whole and len(rows) > 1:
            rows.pop()  # it may be cut
    possible = [mark for mark, rows in tables.items() if rows and len(rows[0]) > 1]
    if len(possible) > 1:
        fitting = [mark for mark in possible if _share(tables[mark]) >= 0.9]
        if len(fitting) == 1 or usual == "\t" in fitting:
            return usual if usual == "\t" in fitting else fitting[0]
        marks = " or ".join(_SHOWN.get(mark, mark) for mark in fitting or possible)
        raise InputError(f"{name}: its values may be separated by {marks}: say which with --delimiter")
    mark = possible[0] if possible else usual
    header, *rows = tables[mark] or [[]]
    if mark == usual:
        # Some rows may be shorter: spreadsheets leave out values at the end.
        bad = [number for number, row in enumerate(rows) if any(row[len(header) :])]
    else:
        bad = [number for number, row in enumerate(rows) if len(row) != len(header)]
    if len(bad) > len(rows) / 2:
        raise InputError(
            f"{name}, row {bad[0]}: has {len(rows[bad[0]])} values, but the header has {len(header)}. Put "
            f"values that hold {_SHOWN.get(mark, mark)} into quotes, or give --delimiter"
        )
    return mark


def _share(rows: Sequence[Sequence[str]]) -> float:
    """The part of the rows that have as many values as the header."""
    if len(rows) < 2:
        return 1.0
    return sum(len(row) == len(rows[0]) for row in rows[1:]) / (len(rows) - 1)


def _skips_spaces(lines: Iterable[str], delimiter: str) -> bool:
    header = next(filter(None, csv.reader(lines, delimiter=delimiter)), [])
    return len(header) > 1 and delimiter != " " and all(value.startswith(" ") for value in header[1:])


def _records(lines: Sequence[str], delimiter: str, limit: int) -> list[list[str]]:
    skips_spaces = _skips_spaces(lines, delimiter)
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=skips_spaces)
    return list(islice(filter(None, reader), limit))


def column_names(header: Sequence[str], name: str | Path) -> list[str]:
    """The names of the columns. One without a name, as pandas writes for its index, is named ``column 1``.

    Raises:
        InputError: two columns have the same name.
    """
    names = [value.strip() or f"column {number}" for number, value in enumerate(header, 1)]
    seen: set[str] = set()
    for each in names:
        if each in seen:
            raise InputError(
                f"{shown(name)}, in the header: two columns have the same name, {each!r}: rename one"
            )
        seen.add(each)
    return names
