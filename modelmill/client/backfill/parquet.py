"""A shard of JSON lines as a Parquet file, a few megabytes at a time."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from modelmill.extras import MissingExtraError, missing_package

GROUP_BYTES = 16 * 1024 * 1024
"""Bytes of JSON in one group of rows. One group is in memory at a time."""
READ_PARQUET_ERRORS = (OSError, ValueError, NotImplementedError)
"""What pyarrow raises for a file that it cannot read."""
_WARNING = {"type": "object", "properties": {"code": {"type": "string"}, "message": {"type": "string"}}}
_TYPES = {"string": "string", "integer": "int64", "number": "float64", "boolean": "bool_"}


def pyarrow_parquet() -> Any:
    """The module ``pyarrow.parquet``, which an extra installs.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return import_module("pyarrow.parquet")
    except ImportError:
        raise MissingExtraError(missing_package("pyarrow")) from None


def write_parquet(source: Path, target: Path, result_schema: Mapping[str, Any]) -> None:
    """Writes the rows of a JSON lines shard as a Parquet file.

    Its columns are ``row``, ``status``, ``job_id``, ``input`` (JSON), ``result`` with the types of the task's
    contract, ``error`` and ``warnings``. If the contract leaves a type open, such as a free object, the value
    is JSON.

    Args:
        source: The shard.
        target: The file to write.
        result_schema: JSON schema of a result, without references.
    """
    parquet, pyarrow = pyarrow_parquet(), import_module("pyarrow")
    result = _arrow_type(result_schema, pyarrow)
    schema = pyarrow.schema(
        [
            pyarrow.field("row", pyarrow.int64(), nullable=False),
            pyarrow.field("status", pyarrow.string(), nullable=False),
            pyarrow.field("job_id", pyarrow.string()),
            pyarrow.field("input", pyarrow.string()),
            pyarrow.field("result", result),
            pyarrow.field(
                "error",
                pyarrow.struct(
                    [
                        ("code", pyarrow.string()),
                        ("message", pyarrow.string()),
                        ("retryable", pyarrow.bool_()),
                    ]
                ),
            ),
            pyarrow.field("warnings", pyarrow.list_(_arrow_type(_WARNING, pyarrow))),
        ]
    )
    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for group in _groups(source):
            for row in group:
                row["input"] = json.dumps(row.get("input"), ensure_ascii=False)
                row["result"] = _fitting(row.get("result"), result, pyarrow)
            writer.write_table(pyarrow.Table.from_pylist(group, schema=schema))


def _groups(source: Path) -> Iterator[list[dict[str, Any]]]:
    with source.open("rb") as file:
        # readlines stops after the line that reaches the size.
        while lines := file.readlines(GROUP_BYTES):
            yield [json.loads(line) for line in lines]


def _arrow_type(schema: Mapping[str, Any], pyarrow: Any) -> Any:
    """The Arrow type of a schema. If the schema leaves the type open: text, which holds JSON."""
    options = [each for each in schema.get("anyOf", [schema]) if each.get("type") != "null"]
    if len(options) != 1:
        return pyarrow.string()
    (one,) = options
    kind = one.get("type")
    if kind == "array" and "items" in one:
        return pyarrow.list_(_arrow_type(one["items"], pyarrow))
    if kind == "object" and one.get("properties"):
        parts = {name: _arrow_type(part, pyarrow) for name, part in one["properties"].items()}
        return pyarrow.struct(list(parts.items()))
    return getattr(pyarrow, _TYPES.get(str(kind), "string"))()


def _fitting(value: Any, kind: Any, pyarrow: Any) -> Any:
    """A value in the form that its column takes."""
    types = pyarrow.types
    if value is None:
        return None
    if types.is_struct(kind) and isinstance(value, dict):
        return {part.name: _fitting(value.get(part.name), part.type, pyarrow) for part in kind}
    if types.is_list(kind) and isinstance(value, list):
        if types.is_floating(kind.value_type) and all(type(each) is float for each in value):
            return value
        return [_fitting(each, kind.value_type, pyarrow) for each in value]
    if types.is_string(kind):
        return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    if types.is_floating(kind) and isinstance(value, int):
        return float(value)
    return value
