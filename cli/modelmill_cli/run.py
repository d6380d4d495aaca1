"""``run`` runs a model in this process, without a server; ``tasks`` lists the tasks."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_origin

import typer
from rich.table import Table

from modelmill.assignments import Assignment, parse_assignment, parse_json, put
from modelmill.errors import ConfigError
from modelmill_backends.inputs import media_fields
from modelmill_backends.loader import load
from modelmill_cli.console import err, make_table, out
from modelmill_tasks.contract import Task, TaskInput
from modelmill_tasks.item_warnings import InputWarning
from modelmill_tasks.registry import all_tasks, find_task


def run_task(task_name: str, model: str, arguments: Iterable[str]) -> None:
    """Runs a model in this process and prints the result, or the list of results, as JSON.

    Raises:
        ModelmillError: as ``modelmill.load`` and ``LoadedModel.run`` do.
        ConfigError: an argument is not a field of the task.
    """
    task = find_task(task_name)
    inputs = read_fields(task, arguments)
    if sys.stderr.isatty():
        err.say((f"loading {model}", "dim"))
    # Lazy, so that the inputs are checked first: a model may take minutes to load.
    with load(model, lazy=True) as loaded, _told_warnings():
        found = loaded.run(task_name, **inputs)
    result = (
        [each.model_dump(mode="json") for each in found]
        if isinstance(found, list)
        else found.model_dump(mode="json")
    )
    typer.echo(json.dumps(result, ensure_ascii=False, indent=2 if sys.stdout.isatty() else None))


@contextmanager
def _told_warnings() -> Iterator[None]:
    """Prints what an input of the block loses as one line on standard error, and other warnings as ever."""
    with warnings.catch_warnings():
        warnings.filterwarnings("always", category=InputWarning)
        show = warnings.showwarning

        def tell(message: Warning | str, *where: Any, **more: Any) -> None:
            if isinstance(message, InputWarning):
                err.say(("warning: ", "yellow"), str(message))
            else:
                show(message, *where, **more)

        warnings.showwarning = tell
        yield


def read_fields(task: Task, arguments: Iterable[str]) -> dict[str, Any]:
    """The task's fields from ``FIELD=VALUE`` and ``FIELD:=JSON``, each also with ``@FILE`` as the value.

    If a field is given several times, its value is a list.

    Raises:
        ConfigError: an argument is wrong; the message names it.
    """
    given: dict[str, list[Any]] = {}
    for argument in arguments:
        assignment = parse_assignment(argument)
        if assignment is None:
            raise ConfigError(
                f"{argument[:100]!r} is not a field: write text=hello, image=@cat.jpg or top:=3; "
                f"`modelmill tasks {task.name}` lists the fields"
            )
        given.setdefault(assignment.field, []).append(_value(task, assignment))
    fields: dict[str, Any] = {}
    for name, values in given.items():
        one = len(values) == 1 and not (isinstance(values[0], str) and _is_list(task, name))
        put(fields, name.split("."), values[0] if one else values)
    return fields


def _value(task: Task, assignment: Assignment) -> Any:
    name, text = assignment.field, assignment.text
    if assignment.is_file:
        path = Path(text)
        if not path.is_file():
            raise ConfigError(f"{name}: there is no file {text}")
        if not assignment.is_json and name.partition(".")[0] in media_fields(task.input):
            return path
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            raise ConfigError(f"{name}: {text} is not a text file, but the field takes text only") from None
    return parse_json(name, text) if assignment.is_json else text


def _is_list(task: Task, name: str) -> bool:
    """Whether the task declares a field, or one inside another such as ``config.stop``, as a list."""
    kind: Any = task.input
    for part in name.split("."):
        field = getattr(kind, "model_fields", {}).get(part)
        kind = field.annotation if field else None
    return _holds_list(kind)


def _holds_list(kind: Any) -> bool:
    if get_origin(kind) is dict:
        return False
    return get_origin(kind) is list or any(map(_holds_list, get_args(kind)))


def list_tasks() -> None:
    """Prints the tasks, each with a sentence."""
    table = make_table("task", "what it is", boxed=False)
    for task in all_tasks().values():
        table.add_row(task.name, task.summary)
    out.print(table)


def show_task(name: str) -> None:
    """Prints the fields of a task."""
    task = find_task(name)
    schema = task.input.model_json_schema()
    table = make_table("field", "takes", "default", "what it is")
    for field, node in schema["properties"].items():
        if field not in TaskInput.model_fields:
            _add_rows(table, field, node, schema, is_batched=field in task.batched_fields)
    out.say(f"{task.name}: {task.summary}")
    out.print(table)


def _add_rows(
    table: Table, name: str, node: dict[str, Any], schema: dict[str, Any], *, is_batched: bool = False
) -> None:
    definition = schema.get("$defs", {}).get(str(node.get("$ref", "")).rpartition("/")[2], {})
    if "config" in name.split(".") and "properties" in definition:
        for key, part in definition["properties"].items():
            _add_rows(table, f"{name}.{key}", part, schema)
        return
    required = name in schema.get("required", ()) or ("." in name and "default" not in node)
    default = "required" if required else json.dumps(node.get("default"), ensure_ascii=False)
    several = "one or several" if is_batched else ""
    about = " ".join(filter(None, (several and f"({several})", node.get("description", ""))))
    table.add_row(name, _kind(node), default, about)


def _kind(node: dict[str, Any]) -> str:
    """A word for the type of a field."""
    if "contentEncoding" in node:
        return str(node["contentMediaType"]).partition("/")[0]
    if "anyOf" in node:
        return " or ".join(dict.fromkeys(_kind(part) for part in node["anyOf"] if part.get("type") != "null"))
    if "enum" in node:
        return ", ".join(map(str, node["enum"]))
    if node.get("type") == "array":
        return f"list of {_kind(node.get('items', {}))}"
    if "$ref" in node:
        return "JSON"
    return {"string": "text", "object": "JSON"}.get(str(node.get("type")), str(node.get("type", "JSON")))
