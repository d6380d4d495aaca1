"""Rows of the input, and what all origins of rows have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from modelmill.client.backfill.identity import difference
from modelmill.formats.encodings import InputError

LOOKED_AT = 100
"""``firsts`` looks at this many rows for one that can be read."""


@dataclass(slots=True)
class Row:
    """One row of the input, and its state in the run."""

    number: int
    columns: Mapping[str, Any]
    folder: Path | None = None
    """The folder of relative paths in the columns; None: no path in the columns is read."""
    problem: str = ""
    """Why it cannot be read. Such a row has no columns."""
    size_bytes: int = 0
    """About how much memory it takes."""
    is_text: bool = False
    """Whether all values are text, as in CSV. They are read as the type of their field."""
    keep: dict[str, Any] = field(default_factory=dict)
    """Columns that are written next to the result."""
    failures: int = 0
    """Jobs of this row that failed and were submitted again."""
    lost: int = 0
    """Jobs of this row that the server no longer knew."""
    jobs: list[str] = field(default_factory=list)
    place: int = 0
    """How many rows this run took before it."""


class RowSource(ABC):
    """The origin of rows. Each row has a number, the same one each time that the source is read.

    Attributes:
        is_of_caller: Whether the rows come from the caller's code, which must not run in another thread.
        is_files: Whether each row is a file, in the column ``path``.
        skipped: Entries of a folder that are no rows, and why; filled by ``prepare``.
    """

    is_of_caller = False
    is_files = False

    def __init__(self) -> None:
        self.skipped: list[tuple[str, str]] = []

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """A value for JSON that identifies the rows, for the manifest."""

    def difference(self, noted: Mapping[str, Any], was_cut: bool) -> str:
        """Why these are not the rows of an earlier run; empty if they are.

        Args:
            noted: The fingerprint of that run.
            was_cut: Whether that run stopped because a file ended too early.
        """
        return difference(noted, self.fingerprint(), was_cut=was_cut)

    @abstractmethod
    def rows(self, start: int) -> Generator[Row, None, None]:
        """The rows, starting with number ``start``.

        Raises:
            InputError: the source cannot be read. The message says what, where and what to do.
        """

    def prepare(self, folder: Path) -> None:  # noqa: B027 - most sources have nothing to do
        """Called once, before the first row of a new or a resumed run, with the output's folder."""

    def check(self, limit_bytes: int) -> int:
        """Reads about the first ``limit_bytes`` as ``rows`` does, to find errors before anything is sent.

        Returns:
            How many were read.

        Raises:
            InputError: as for ``rows``.
        """
        return 0

    def firsts(self) -> list[Row]:
        """For each file of rows, the first of its first ``LOOKED_AT`` rows that can be read.

        Raises:
            InputError: there are rows, and none of the first can be read.
        """
        with closing(self.rows(0)) as rows:
            looked_at = list(islice(rows, LOOKED_AT))
        readable = [row for row in looked_at if not row.problem]
        if looked_at and not readable:
            raise InputError(self.unreadable(looked_at[0]))
        return readable[:1]

    def unreadable(self, row: Row) -> str:
        """The sentence for an input none of whose first rows can be read."""
        return f"row {row.number}: {row.problem}, like the rows after it"

    def count(self) -> int | None:
        """The number of rows; None if it is unknown. This may take a while."""
        return None
