"""Table question answering: which cells of the table answer the question?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from modelmill.errors import ErrorCode
from modelmill_tasks.contract import (
    Batched,
    Example,
    Task,
    TaskConfig,
    TaskGroup,
    TaskInput,
    TaskOutput,
    field_problem,
)
from modelmill_tasks.shared.fields import Text

MAX_COLUMNS = 100
MAX_ROWS = 10_000
MAX_CELL = 1000
"""Characters of one cell."""
MAX_TABLE = 1_000_000
"""Characters of all cells together."""


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _rectangular(table: dict[str, list[str]]) -> dict[str, list[str]]:
    heights = {header: len(column) for header, column in table.items()}
    if len(set(heights.values())) > 1:
        shortest, longest = min(heights.values()), max(heights.values())
        raise field_problem(
            ErrorCode.INVALID_INPUT, f"columns must be of one length; they have {shortest} to {longest} cells"
        )
    if sum(len(cell) for column in table.values() for cell in column) > MAX_TABLE:
        raise field_problem(
            ErrorCode.INVALID_INPUT, f"the cells hold more than {MAX_TABLE} characters together"
        )
    return table


Header = Annotated[str, Field(max_length=500)]
Cell = Annotated[
    str, Field(max_length=MAX_CELL), BeforeValidator(_as_text, json_schema_input_type=str | int | float)
]
Column = Annotated[list[Cell], Field(min_length=1, max_length=MAX_ROWS)]
Table = Annotated[
    dict[Header, Column], Field(min_length=1, max_length=MAX_COLUMNS), AfterValidator(_rectangular)
]


class Config(TaskConfig):
    """Options of the model."""


class Input(TaskInput):
    query: Annotated[Text, Batched] = Field(
        description="The question. Text beyond half of the model's window is cut off."
    )
    table: Table = Field(
        description="The table by columns: each header with its cells, texts or numbers, all columns equally "
        "long. Rows that do not fit into the model's window are left out, the last ones first.",
        examples=[{"tree": ["beech", "yew"], "years": ["300", "2000"]}],
    )
    config: Config = Field(default_factory=Config, description="Options of the model.")


class Output(TaskOutput):
    answer: str = Field(
        description="The cells that answer, joined by commas. If there is an aggregator, it stands "
        "before them with >."
    )
    aggregator: str | None = Field(
        None, description="The operation on the cells, such as SUM; null if the model does not give one."
    )
    cells: list[str] | None = Field(None, description="The cells that answer, row by row.")
    coordinates: list[tuple[int, int]] | None = Field(
        None, description="Their places: [row, column], counted from 0 without the header."
    )


def samples(count: int) -> Sequence[dict[str, Any]]:
    """Tables of unequal shapes."""
    trees = {"tree": ["beech", "yew", "oak"], "years": ["300", "2000", "800"], "leaves": ["yes", "no", "yes"]}
    towns = {"town": ["Ravensburg", "Berlin"], "people": [50_000, 3_700_000]}
    single = {"word": ["mill"]}
    asked: tuple[tuple[str, dict[str, Any]], ...] = (
        ("How old does a yew become?", trees),
        ("How many people live in Ravensburg and Berlin together?", towns),
        ("Which word?", single),
        ("Which trees have leaves, and how many are there?", trees),
        (
            "What is the average age of the trees in this list of old trees of the valley?",
            trees | {"no": [1, 2, 3]},
        ),
    )
    return [
        {"query": query, "table": table}
        for query, table in (asked[index % len(asked)] for index in range(count))
    ]


TASK = Task(
    name="table-question-answering",
    group=TaskGroup.TEXT,
    summary="Which cells of the table answer the question?",
    input=Input,
    output=Output,
    example=Example(
        input={
            "query": "How old does a yew become?",
            "table": {"tree": ["beech", "yew"], "years": ["300", "2000"]},
        },
        output={
            "answer": "AVERAGE > 2000",
            "aggregator": "AVERAGE",
            "cells": ["2000"],
            "coordinates": [[1, 1]],
        },
        model="tapas-base-wtq",
        real=False,
    ),
    samples=samples,
)
