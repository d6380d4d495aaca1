"""Rows of files: JSON, CSV, TSV, lines of text, Parquet. Each is read as a stream."""

from __future__ import annotations

import csv
import io
import json
from abc import abstractmethod
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

from modelmill.client.backfill.identity import identity
from modelmill.client.backfill.parquet import READ_PARQUET_ERRORS, pyarrow_parquet
from modelmill.client.backfill.rows import Row, RowSource
from modelmill.formats.delimiters import Dialect, column_names, find_dialect
from modelmill.formats.encodings import InputError, open_text
from modelmill.formats.json_values import Layout, Unreadable, json_values, layout_of
from modelmill.formats.names import shown
from modelmill.formats.tables import HEAD_BYTES, READ_ERRORS, Kind, kind_of, open_bytes, read_error

MAX_LINE_CHARACTERS = 96 * 1024 * 1024
"""The limit of a line, of a JSON object and of a value of CSV. A longer one is not kept."""
PARQUET_BATCH = 64
_LINE_ENDS = ("\n", "\r")
_BLANKS = " \t\r\n\v\f"


@dataclass(frozen=True, slots=True)
class Reading:
    """How the caller says that files are read. Empty: as the file itself says.

    Attributes:
        input_format: What the rows are.
        encoding: Python's name of the text encoding.
        delimiter: The character that separates the values of CSV.
    """

    input_format: Kind | None = None
    encoding: str = ""
    delimiter: str = ""

    def as_data(self) -> dict[str, str]:
        """What is not empty."""
        given = {"input_format": self.input_format, "encoding": self.encoding, "delimiter": self.delimiter}
        return {name: str(value) for name, value in given.items() if value}


class TableSource(RowSource):
    """A file with rows.

    Args:
        path: The file.
        reading: How it is read.
        name: Its name for messages.
        folder: The folder of relative paths in its columns.
    """

    _errors: tuple[type[Exception], ...] = READ_ERRORS
    """What reading the file may raise."""

    def __init__(self, path: Path, reading: Reading, name: str, folder: Path) -> None:
        super().__init__()
        self._path, self._reading, self._folder = path, reading, folder
        self._name = shown(name)

    def fingerprint(self) -> dict[str, Any]:
        try:
            return {**identity(self._path), **self._reading.as_data()}
        except OSError as error:
            raise read_error(error, self._name) from None

    def rows(self, start: int) -> Generator[Row, None, None]:
        number = start
        try:
            for row in self._read(start):
                yield row
                number = row.number + 1
        except self._errors as error:
            raise self._explained(error, number) from None

    def check(self, limit_bytes: int) -> int:
        size = 0
        rows = self.rows(0)
        while size < limit_bytes and (row := next(rows, None)) is not None:
            size += row.size_bytes + 1
        rows.close()
        return size

    def unreadable(self, row: Row) -> str:
        return f"{self._name}, row {row.number}: {row.problem}, like the rows after it"

    def count(self) -> int | None:
        return sum(1 for _ in self.rows(0))

    @abstractmethod
    def _read(self, start: int) -> Iterator[Row]:
        """The rows, starting with number ``start``. May raise what reading the file raises."""

    def _explained(self, error: Exception, row: int) -> InputError:
        return read_error(error, f"{self._name}, row {row}")

    def _text(self) -> io.TextIOWrapper:
        return open_text(open_bytes(self._path, self._name), self._name, self._reading.encoding)

    def _first_lines(self) -> tuple[list[str], bool]:
        """The beginning of the text, its lines with their ends; and whether that is all of it."""
        lines: list[str] = []
        left = HEAD_BYTES
        try:
            with self._text() as text:
                while left > 0 and (line := text.readline(HEAD_BYTES)):
                    lines.append(line)
                    left -= len(line)
                return lines, left > 0
        except (InputError, *READ_ERRORS):
            return lines, False  # reading the rows meets the same error, and says where

    def _lines(self, text: io.TextIOWrapper) -> Iterator[str]:
        """The lines that are not blank. Of a line that is too long, the beginning."""
        while line := text.readline(MAX_LINE_CHARACTERS):
            rest = line
            while len(rest) == MAX_LINE_CHARACTERS and not rest.endswith(_LINE_ENDS):
                rest = text.readline(MAX_LINE_CHARACTERS)
            if line.strip(_BLANKS):
                yield line


class JsonRows(TableSource):
    """JSON objects: in lines, one after the other, or in an array. The beginning of the file says which."""

    def _read(self, start: int) -> Iterator[Row]:
        with self._text() as text:
            values = self._of_lines(text) if self._layout is Layout.LINES else self._of_values(text)
            for number, (value, size) in enumerate(islice(values, start, None), start):
                row = Row(number, {}, self._folder, size_bytes=size)
                if isinstance(value, dict):
                    row.columns = value
                else:
                    row.problem = value.problem if isinstance(value, Unreadable) else "is not a JSON object"
                yield row

    @cached_property
    def _layout(self) -> Layout:
        lines, is_whole = self._first_lines()
        return layout_of("".join(lines), is_whole=is_whole)

    def _of_lines(self, text: io.TextIOWrapper) -> Iterator[tuple[Any, int]]:
        for line in self._lines(text):
            is_short = len(line) < MAX_LINE_CHARACTERS
            yield _value(line) if is_short else Unreadable("is too long"), len(line)

    def _of_values(self, text: io.TextIOWrapper) -> Iterator[tuple[Any, int]]:
        size = 0

        def read(count: int) -> str:
            nonlocal size
            block = text.read(count)
            size += len(block)
            return block

        is_array = self._layout is Layout.ARRAY
        counted = 0
        for value in json_values(read, self._name, limit=MAX_LINE_CHARACTERS, is_array=is_array):
            # The block is in memory with its first value.
            yield value, size - counted + 100
            counted = size


class CsvRows(TableSource):
    """CSV or TSV with the names of the columns in its first line. Quotes are read strictly."""

    is_tsv = False

    def _read(self, start: int) -> Iterator[Row]:
        with self._text() as text:
            records = self._records(text)
            names = column_names(self._header(records), self._name)
            for number, (values, problem) in enumerate(islice(records, start, None), start):
                size = sum(map(len, values))
                row = Row(number, {}, self._folder, size_bytes=size, is_text=True, problem=problem)
                if any(values[len(names) :]):
                    row.problem = f"has {len(values)} values, but there are {len(names)} columns"
                elif not problem:
                    row.columns = dict(zip(names, values, strict=False))
                yield row

    def _header(self, records: Iterator[tuple[list[str], str]]) -> list[str]:
        for values, problem in records:
            if problem:
                raise InputError(f"{self._name}: the header {problem}")
            if any(map(str.strip, values)):
                return values
        return []

    @cached_property
    def _dialect(self) -> Dialect:
        lines, is_whole = self._first_lines()
        given = self._reading.delimiter
        return find_dialect(lines, self._name, given=given, is_tsv=self.is_tsv, is_whole=is_whole)

    def _records(self, text: io.TextIOWrapper) -> Iterator[tuple[list[str], str]]:
        """The values of each record, or none and what is wrong with it."""
        csv.field_size_limit(max(csv.field_size_limit(), MAX_LINE_CHARACTERS))
        dialect = self._dialect
        before = 0
        if dialect.has_sep_line:
            text.readline()
            before = 1
        reader = csv.reader(
            self._whole_lines(text),
            delimiter=dialect.delimiter,
            skipinitialspace=dialect.skips_spaces,
            strict=True,
        )
        while True:
            begin = before + reader.line_num + 1
            try:
                values = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                end = before + reader.line_num
                if "unexpected end" in str(error):
                    raise InputError(
                        f"{self._name}, line {begin}: a quote begins a value and is not closed. Double the "
                        "quotes inside of a value, and put it into quotes"
                    ) from None
                if begin != end:
                    # The record may have swallowed others.
                    raise InputError(f"{self._name}, lines {begin} to {end}: {error}") from None
                yield [], f"is not valid CSV: in line {begin}, {error}"
            else:
                if values:
                    yield values, ""

    def _whole_lines(self, text: io.TextIOWrapper) -> Iterator[str]:
        number = 0
        while line := text.readline(MAX_LINE_CHARACTERS):
            number += 1
            if len(line) == MAX_LINE_CHARACTERS and not line.endswith(_LINE_ENDS):
                raise InputError(f"{self._name}, line {number}: is too long")
            yield line


class TsvRows(CsvRows):
    """The same, with tabs."""

    is_tsv = True


class TextRows(TableSource):
    """Each line is a row with one column, ``text``. Blank lines are skipped."""

    def _read(self, start: int) -> Iterator[Row]:
        with self._text() as text:
            for number, line in enumerate(islice(self._lines(text), start, None), start):
                row = Row(number, {}, self._folder, size_bytes=len(line))
                if len(line) < MAX_LINE_CHARACTERS:
                    row.columns = {"text": line.rstrip("\r\n")}
                else:
                    row.problem = "is too long"
                yield row


class ParquetRows(TableSource):
    """The rows of a Parquet file."""

    _errors = READ_PARQUET_ERRORS

    def check(self, limit_bytes: int) -> int:
        return 0  # its end was read, which says where all its parts lie

    def count(self) -> int | None:
        with self._file() as file:
            return int(file.metadata.num_rows)

    def _read(self, start: int) -> Iterator[Row]:
        with self._file() as file:
            names = file.schema_arrow.names
            column_names(names, self._name)
            groups, skipped = list(range(file.metadata.num_row_groups)), 0
            while groups and start >= skipped + file.metadata.row_group(groups[0]).num_rows:
                skipped += file.metadata.row_group(groups.pop(0)).num_rows
            number = skipped
            for batch in file.iter_batches(PARQUET_BATCH, row_groups=groups) if groups else ():
                size = batch.nbytes // max(1, batch.num_rows)
                for columns in batch.to_pylist():
                    if number >= start:
                        yield Row(number, columns, self._folder, size_bytes=size)
                    number += 1

    def _explained(self, error: Exception, row: int) -> InputError:
        if isinstance(error, OSError) and error.errno is not None:
            return super()._explained(error, row)
        reason = " ".join(str(error).split())
        return InputError(
            f"{self._name}, row {row}: the Parquet file is damaged or cut off ({reason}). Get it again"
        )

    def _file(self) -> Any:
        return pyarrow_parquet().ParquetFile(self._path)


_SOURCES: Mapping[Kind, type[TableSource]] = {
    Kind.JSONL: JsonRows,
    Kind.JSON: JsonRows,
    Kind.CSV: CsvRows,
    Kind.TSV: TsvRows,
    Kind.TEXT: TextRows,
    Kind.PARQUET: ParquetRows,
}


def open_table(path: Path, reading: Reading, name: str, folder: Path) -> TableSource | None:
    """The source for a file with rows; None if the file itself is a row, such as a photograph.

    Raises:
        InputError: the file cannot be read, or does not say what it is.
        ConfigError: it is a Parquet file, and pyarrow is not installed.
    """
    try:
        kind = kind_of(path, name, reading.input_format, reading.encoding)
    except OSError as error:
        raise read_error(error, shown(name)) from None
    if kind is Kind.FILES:
        return None
    if kind is Kind.PARQUET:
        pyarrow_parquet()
    return _SOURCES[kind](path, reading, name, folder)


def _value(line: str) -> Any:
    """The value of a line of JSON. A comma at its end, or a byte order mark, is left out."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(line.strip("\ufeff" + _BLANKS).removesuffix(","))
    except (ValueError, RecursionError):
        is_cut = not line.endswith(_LINE_ENDS)
        note = ". No line end follows: the file may be cut off" if is_cut else ""
        return Unreadable("is not valid JSON" + note)
