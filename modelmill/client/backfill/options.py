"""The options of a backfill: the one place for their names, defaults and limits."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

from modelmill.client.backfill.stats import Stats
from modelmill.client.backfill.tables import Reading
from modelmill.errors import ConfigError
from modelmill.formats.delimiters import read_delimiter
from modelmill.formats.encodings import check_encoding
from modelmill.formats.tables import Kind

LANES = ("interactive", "normal", "bulk")
MAX_TTL_S = 30 * 86_400


@dataclass(frozen=True, kw_only=True)
class BackfillOptions:
    """How a backfill is done.

    Attributes:
        map: The column of each field. A dot names a field inside another, such as ``config.top_k``. A column
            that has the name of a field needs no entry.
        set: Fields that are the same for all rows.
        assignments: Such fields as text: ``classes=cat,dog``, ``config.top_k:=3``, ``image=@photo.jpg``.
        lane: The lane of the jobs.
        tags: The tags of the jobs, at most 16 of 1 to 64 characters each.
        result_ttl_s: How long the server keeps results that are not collected; the server's default if None.
        output_format: ``jsonl``, or ``parquet``, which needs the extra of that name.
        shard_rows: Rows per output file.
        resume: Continue an earlier run into the same folder, if there is one.
        same_input: With ``resume``: the input holds the same rows in the same order as before, although it
            has another path, size or content.
        input_format: What the rows of the input are, if the file does not say so: ``jsonl``, ``json``,
            ``csv``, ``tsv``, ``text``, ``parquet``, or ``files`` if each file is a row.
        encoding: The text encoding of the input, as Python names it. Empty: what the byte order mark says, or
            UTF-8.
        delimiter: What separates the values of CSV, if the file does not say so: one character, or ``tab``.
        key: A name for rows that a program passes. Only with a name can such a run be resumed.
        window: The most rows that are taken from the input and not yet written.
        retries: How often a job is submitted again after a failure that may pass.
        max_error_rate: The run stops when more than this part of its rows has failed. The first hundred rows
            are not judged; 1 never stops the run.
        give_up_after_s: The run also stops when the server has not answered for this long.
        on_progress: Called a few times per second.

    Raises:
        ConfigError: a value is not allowed.
    """

    map: Mapping[str, str] | None = None
    set: Mapping[str, Any] | None = None
    assignments: Sequence[str] = ()
    lane: str = "bulk"
    tags: Sequence[str] = ()
    result_ttl_s: int | None = None
    output_format: Literal["jsonl", "parquet"] = "jsonl"
    shard_rows: int = 100_000
    resume: bool = False
    same_input: bool = False
    input_format: str | None = None
    encoding: str = ""
    delimiter: str = ""
    key: str = ""
    window: int = 256
    retries: int = 2
    max_error_rate: float = 0.05
    give_up_after_s: float = 300.0
    on_progress: Callable[[Stats], None] | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.window <= 100_000:
            raise ConfigError("the window must be between 1 and 100,000 rows")
        if not 0 <= self.max_error_rate <= 1:
            raise ConfigError("the allowed rate of errors must be between 0 and 1")
        # The server would refuse each row for one of these.
        if self.lane not in LANES:
            raise ConfigError(f"there is no lane {self.lane!r}; there are {', '.join(LANES)}")
        if len(self.tags) > 16 or not all(1 <= len(tag) <= 64 for tag in self.tags):
            raise ConfigError("there can be 16 tags, each of 1 to 64 characters")
        if self.result_ttl_s is not None and not 1 <= self.result_ttl_s <= MAX_TTL_S:
            raise ConfigError("results can be kept for 1 second to 30 days")
        _ = self.reading

    @property
    def reading(self) -> Reading:
        """How the files of the input are read."""
        kinds = [kind.value for kind in Kind]
        if self.input_format is not None and self.input_format not in kinds:
            raise ConfigError(f"there is no input format {self.input_format!r}; there are {', '.join(kinds)}")
        if self.encoding:
            check_encoding(self.encoding)
        kind = None if self.input_format is None else Kind(self.input_format)
        return Reading(kind, self.encoding, read_delimiter(self.delimiter))

    @property
    def job_fields(self) -> dict[str, Any]:
        """The fields that every job gets: lane, tags and time to live."""
        given = {"tags": list(self.tags) or None, "result_ttl": self.result_ttl_s}
        return {"lane": self.lane, **{name: value for name, value in given.items() if value is not None}}


class BackfillKeywords(TypedDict, total=False):
    """The fields of ``BackfillOptions`` as keyword arguments, for type checkers. A test compares both."""

    map: Mapping[str, str] | None
    set: Mapping[str, Any] | None
    assignments: Sequence[str]
    lane: str
    tags: Sequence[str]
    result_ttl_s: int | None
    output_format: Literal["jsonl", "parquet"]
    shard_rows: int
    resume: bool
    same_input: bool
    input_format: str | None
    encoding: str
    delimiter: str
    key: str
    window: int
    retries: int
    max_error_rate: float
    give_up_after_s: float
    on_progress: Callable[[Stats], None] | None
