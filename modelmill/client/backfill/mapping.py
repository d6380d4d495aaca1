"""Turns the columns of a row into the fields of a task."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from datetime import time as clock_time
from decimal import Decimal
from pathlib import Path
from typing import Any

from modelmill.assignments import FIELD, Assignment, parse_assignment, parse_json, put
from modelmill.client.backfill.media import media_name, media_text
from modelmill.client.backfill.rows import Row
from modelmill.client.backfill.schema import JOB_FIELDS, TaskSchema
from modelmill.errors import ConfigError, ErrorCode, ModelmillError
from modelmill.formats.encodings import open_text
from modelmill.formats.names import shown

KEEP_CHARACTERS = 1000
"""A longer text of a column is not written next to the result."""
_COLUMN = re.compile(rf"({FIELD})=(.+)", re.DOTALL)
_WITH_OPTION = frozenset({"lane", "idempotency_key", "result_ttl", "tags"})


@dataclass(frozen=True, slots=True)
class _FieldSource:
    """The column of a field, and how its values are read."""

    column: str
    path: tuple[str, ...]
    is_media: bool
    kinds: frozenset[str]
    is_required: bool


class Mapper:
    """Makes the request of each row.

    Args:
        schema: The inputs of the task.
        columns: The column of each field. A dot names a field inside another. A column that has the name of
            a field needs no entry.
        constants: Fields that are the same for all rows.
        assignments: Such fields as ``FIELD=VALUE`` or ``FIELD:=JSON``, each also with ``@FILE`` as the value.
        job: Fields that concern the job: ``lane``, ``tags``, ``result_ttl``.

    Raises:
        ConfigError: the task does not have a field, or a field is given twice.
    """

    def __init__(
        self,
        schema: TaskSchema,
        *,
        columns: Mapping[str, str],
        constants: Mapping[str, Any],
        assignments: Sequence[str] = (),
        job: Mapping[str, Any],
    ) -> None:
        self._schema = schema
        self._given = dict(columns)
        self.constants: dict[str, Any] = {}
        for name, value in [*constants.items(), *read_assignments(schema, assignments)]:
            self._check_field(name)
            is_file = schema.is_media(name) and not isinstance(value, list)
            put(self.constants, name.split("."), media_text(value, None) if is_file else value)
        for field in columns:
            self._check_field(field)
            if _get(self.constants, field.split(".")) is not None:
                raise ConfigError(f"{field} is both set and mapped to a column")
        self._job = dict(job)
        self._pinned = {"map": dict(columns), "set": self.constants, **self._job}
        self._sources: dict[tuple[str, ...], list[_FieldSource]] = {}

    def check(self, row: Row, *, is_file: bool = False) -> None:
        """Checks whether rows with the columns of this one can be sent.

        Args:
            row: The first row.
            is_file: Whether each row is a file.

        Raises:
            ConfigError: a column does not exist, or a required field has no value.
        """
        if is_file and "path" not in self._given.values():
            self._map_files()
        for field, column in self._given.items():
            if _column_of(column, row.columns) is None:
                raise ConfigError(f"there is no column {column!r} for {field}; {_columns(row)}")
        given = {source.path[0] for source in self._of(row)} | self.constants.keys()
        missing = sorted(self._schema.required - given)
        if missing:
            raise ConfigError(
                f"nothing gives {', '.join(missing)}: set a value for all rows, or map a column; "
                f"{_columns(row)}"
            )

    def request(self, row: Row, idempotency_key: str) -> bytes:
        """The row's line of a bulk submit. Also puts the columns to write next to the result into ``row``.

        Raises:
            ModelmillError: the row cannot be sent.
        """
        if row.problem:
            raise ModelmillError(ErrorCode.INVALID_INPUT, f"The row {row.problem}.")
        sources = self._of(row)
        self._keep(row, sources)
        fields = _copied(self.constants)
        for source in sources:
            value = row.columns.get(source.column)
            if value is None or (row.is_text and value == ""):
                if source.is_required:
                    raise ModelmillError(ErrorCode.INVALID_INPUT, f"The column {source.column} is empty.")
                continue
            if source.is_media:
                value = media_text(value, row.folder)
            elif row.is_text:
                value = _read_text(source.column, source.kinds, value)
            put(fields, list(source.path), value)
        fields |= self._job
        fields["idempotency_key"] = idempotency_key
        try:
            line = json.dumps(fields, separators=(",", ":"), allow_nan=False, default=_plain).encode()
            if rb"\ud" in line:
                # Only half of a surrogate pair cannot be encoded: no server could say what it stands for.
                json.dumps(fields, ensure_ascii=False, default=_plain).encode()
            return line + b"\n"
        except UnicodeEncodeError:
            raise ModelmillError(ErrorCode.INVALID_INPUT, "The row holds half of a character.") from None
        except (TypeError, ValueError, RecursionError) as error:
            raise ModelmillError(
                ErrorCode.INVALID_INPUT, f"The row holds what JSON cannot hold: {error}"
            ) from None

    def pinned(self) -> dict[str, Any]:
        """The settings that decide the content of the requests. A resumed run must have the same ones."""
        return self._pinned

    def _of(self, row: Row) -> list[_FieldSource]:
        """The field sources for this row. Rows of JSON lines may have different columns."""
        names = tuple(row.columns)
        if names not in self._sources:
            if len(self._sources) > 100:
                self._sources.clear()
            self._sources[names] = self._find_sources(names)
        return self._sources[names]

    def _find_sources(self, names: Iterable[str]) -> list[_FieldSource]:
        wanted = dict(self._given)
        taken = {field.partition(".")[0] for field in (*wanted, *self.constants)}
        free = set(self._schema.own_fields) - taken
        # A name that fits exactly comes last, and wins.
        near = {name.strip(): name for name in names if name.strip() in free}
        wanted |= near | {name: name for name in names if name in free}
        return [
            _FieldSource(
                _column_of(column, names) or column,
                tuple(field.split(".")),
                self._schema.is_media(field),
                frozenset(self._schema.kinds(field)),
                field in self._schema.required,
            )
            for field, column in wanted.items()
        ]

    def _map_files(self) -> None:
        given = self.constants.keys() | self._given.keys()
        media = [name for name in self._schema.media_fields if name not in given]
        if len(media) != 1:
            raise ConfigError(
                "the input is files, and the task has "
                + (f"the fields {', '.join(media)} for them" if media else "no field of its own for one")
                + ": say which with map FIELD=path"
            )
        self._given[media[0]] = "path"

    def _keep(self, row: Row, sources: Sequence[_FieldSource]) -> None:
        sent = {source.column: source for source in sources}
        for name, value in row.columns.items():
            if name in row.keep:
                continue  # as its source writes it
            if name not in sent:
                value = value.isoformat() if isinstance(value, date | clock_time) else value
            elif sent[name].is_media:
                value = media_name(value)
                if value is None:
                    continue
            else:
                continue
            if isinstance(value, float) and not math.isfinite(value):
                value = str(value)  # JSON has no such number
            is_short = isinstance(value, str) and len(value) <= KEEP_CHARACTERS
            if is_short or value is None or isinstance(value, bool | int | float):
                row.keep[name] = value

    def _check_field(self, field: str) -> None:
        if field.partition(".")[0] in _WITH_OPTION:
            raise ConfigError(f"{field} has an option of its own")
        if not self._schema.is_known(field):
            known = [name for name in self._schema.fields if name not in JOB_FIELDS]
            raise ConfigError(f"the task has no field {field}; it has {', '.join(known)}")


def read_assignments(schema: TaskSchema, assignments: Iterable[str]) -> list[tuple[str, Any]]:
    """The fields and values of ``FIELD=VALUE`` and ``FIELD:=JSON``, each also with ``@FILE`` as the value.

    Text is read as the type of its field: for a list it is split at its commas.

    Raises:
        ConfigError: an assignment is wrong; the message names it.
    """
    found: list[tuple[str, Any]] = []
    for text in assignments:
        assignment = parse_assignment(text)
        if assignment is None:
            raise ConfigError(f"{text[:100]!r} sets no field: write classes=cat,dog or config.top_k:=3")
        found.append((assignment.field, _assigned_value(schema, assignment)))
    return found


def _assigned_value(schema: TaskSchema, assignment: Assignment) -> Any:
    name, text = assignment.field, assignment.text
    if assignment.is_file:
        if not assignment.is_json and schema.is_media(name):
            return Path(text)
        text = _text_of(name, Path(text))
    if assignment.is_json:
        return parse_json(name, text)
    try:
        return _read_text(name, frozenset(schema.kinds(name)), text)
    except ModelmillError as error:
        raise ConfigError(error.message) from None


def read_columns(texts: Iterable[str]) -> dict[str, str]:
    """The texts ``FIELD=COLUMN`` as a mapping from field to column.

    Raises:
        ConfigError: a text does not have that form.
    """
    found: dict[str, str] = {}
    for text in texts:
        match = _COLUMN.fullmatch(text)
        if match is None:
            raise ConfigError(f"{text[:100]!r} maps no column: write FIELD=COLUMN, such as image=path")
        found[match[1]] = match[2]
    return found


def _column_of(column: str, names: Iterable[str]) -> str | None:
    """The column of that name, or else the one whose name differs only in spaces around it."""
    given = list(names)
    if column in given:
        return column
    return next((name for name in given if name.strip() == column.strip()), None)


def _text_of(name: str, path: Path) -> str:
    try:
        with path.open("rb") as file, open_text(file, path) as text:
            return text.read()
    except OSError as error:
        raise ConfigError(f"{name}: {shown(path)} cannot be read: {error.strerror}") from None


def _read_text(name: str, kinds: frozenset[str], text: str) -> Any:
    """Text as a value of one of the JSON types in ``kinds``. ``name`` is for the error."""
    kinds = kinds - {"null"}
    if not kinds or "string" in kinds:
        return text
    stripped = text.strip()
    if "array" in kinds and not stripped.startswith("["):
        return [part.strip() for part in text.split(",") if part.strip()]
    try:
        return json.loads(stripped.lower() if kinds == {"boolean"} else stripped)
    except ValueError:
        kind = " or ".join(sorted(kinds))
        message = f"{name}: {text[:100]!r} is not of type {kind}"
        raise ModelmillError(ErrorCode.INVALID_INPUT, message) from None


def _plain(value: Any) -> Any:
    """Converts values of Parquet files and programs that JSON cannot hold."""
    if isinstance(value, datetime | date | clock_time):
        return value.isoformat()
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, bytes | Path) or not hasattr(value, "tolist"):
        raise TypeError(f"a value of type {type(value).__name__}")
    return value.tolist()


def _columns(row: Row) -> str:
    return f"the columns are {', '.join(row.columns)}" if row.columns else "there are no columns"


def _get(fields: Any, path: Sequence[str]) -> Any:
    for part in path:
        fields = fields.get(part) if isinstance(fields, dict) else None
    return fields


def _copied(fields: dict[str, Any]) -> dict[str, Any]:
    """A copy of nested dicts. Other values are not copied."""
    return {name: _copied(value) if isinstance(value, dict) else value for name, value in fields.items()}
