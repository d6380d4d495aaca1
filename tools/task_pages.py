"""Writes the documentation page of each task from its contract.

``python -m tools.task_pages docs/tasks`` writes them all.
"""

from __future__ import annotations

import base64
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from modelmill.catalogue import Catalogue, ModelEntry
from modelmill_tasks.contract import Task, TaskInput
from modelmill_tasks.registry import all_tasks

SERVER = "http://127.0.0.1:8000"
EXTENSIONS = {"jpeg": "jpg", "x-wav": "wav", "mpeg": "mp3"}
NEEDS = "The column *needs* names extras: `pip install 'modelmill[…]'`."
REQUEST = (
    "Fields in **bold** are required. In a batched job, fields marked *batched* are lists. Each other\n"
    "field is one value for all items, or a list with one value per item."
)
LONG = 120
"""Longer strings and lists are abridged in answers."""
NAMES = {"image": "photo", "audio": "speech"}


def example_files(task: Task) -> dict[str, bytes]:
    """The media of the task's example. The keys are the file names on the page."""
    return {name: base64.b64decode(url.partition(",")[2]) for url, name in _media(task).items()}


def page(task: Task, catalogue: Mapping[str, ModelEntry]) -> str:
    """The page, in Markdown."""
    about = (sys.modules[task.input.__module__].__doc__ or task.summary).strip()
    parts = [
        f"# {task.name}",
        about,
        "## Models",
        _models(task, catalogue),
        NEEDS,
        "## Request",
        REQUEST,
        _table(task.input, task),
        "## Result",
        "The result for one item. The result of a batched job is a list of these.",
        _table(task.output),
        "## Example",
        _answer(task),
        _preparation(task),
        _curl(task),
        "From Python:",
        _python(task),
        "Several items in one job; if one fails, the others are still answered:",
        _curl(task, batched=True),
    ]
    return "\n\n".join(filter(None, parts)) + "\n"


def index(tasks: Mapping[str, Task]) -> str:
    """The list of all pages."""
    rows = [f"| [{name}]({name}.md) | {task.summary} |" for name, task in tasks.items()]
    return "\n".join(["# Tasks", "", "| task | question |", "| --- | --- |", *rows, ""])


def main() -> None:
    """Writes the pages into the folder that is named on the command line, or into ``docs/tasks``."""
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/tasks")
    folder.mkdir(parents=True, exist_ok=True)
    known, catalogue = built_in_tasks(), Catalogue.load()
    for stale in folder.glob("*.md"):
        stale.unlink()
    for name, task in known.items():
        (folder / f"{name}.md").write_text(page(task, catalogue), encoding="utf-8")
    (folder / "README.md").write_text(index(known), encoding="utf-8")


def built_in_tasks() -> dict[str, Task]:
    """The tasks of this distribution, without those of installed plugins."""
    return {
        name: task
        for name, task in all_tasks().items()
        if task.input.__module__.startswith("modelmill_tasks.")
    }


def _models(task: Task, catalogue: Mapping[str, ModelEntry]) -> str:
    rows = [
        f"| `{entry.name}` | {entry.backend} | {_needs(entry)} | {entry.license or 'see its page'} "
        f"| {entry.description} |"
        for entry in catalogue.values()
        if task.name in entry.tasks
    ]
    if not rows:
        return "The catalogue has none. Name your own in a [models file](../models.md)."
    return "\n".join(["| model | backend | needs | licence | |", "| --- | --- | --- | --- | --- |", *rows])


def _needs(entry: ModelEntry) -> str:
    """The extras that the model needs, and its further packages."""
    own = [f"`pip install {entry.source.install}`"] if entry.source and entry.source.install else []
    return ", ".join([*(f"`{extra}`" for extra in entry.requires), *own])


def _table(model: type[Any], task: Task | None = None) -> str:
    schema = model.model_json_schema(mode="validation" if task else "serialization")
    rows = [
        f"| {name} | {kind} | {note} |"
        for name, kind, note in _rows(schema, schema.get("$defs", {}), task)
        if name.strip("*").split(".")[0] not in TaskInput.model_fields
    ]
    return "\n".join(["| field | type | |", "| --- | --- | --- |", *rows])


def _rows(
    schema: Mapping[str, Any], defs: Mapping[str, Any], task: Task | None, path: str = "", depth: int = 0
) -> Iterator[tuple[str, str, str]]:
    required = schema.get("required", ())
    for name, field in schema.get("properties", {}).items():
        shown = f"{path}{name}"
        notes = [_sentence(_description(field, defs))]
        if task and not path and name in task.batched_fields:
            notes.append("*Batched.*")
        if task and field.get("default") not in (None, {}):
            notes.append(f"Default: `{json.dumps(field['default'])}`.")
        yield f"**{shown}**" if name in required else shown, _kind(field, defs), " ".join(filter(None, notes))
        for inner, suffix in _objects(field, defs):
            if depth < 4:
                yield from _rows(inner, defs, task, f"{shown}{suffix}.", depth + 1)


def _description(field: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """The field's own description. For an object without one: that of its class.

    pydantic leaves a description out if it is the same as that of the class.
    """
    own = field.get("description", "")
    return own or (_variants(field, defs)[0].get("description", "") if "$ref" in field else "")


def _sentence(text: str) -> str:
    text = " ".join(text.split()).replace("|", "\\|")
    return text if not text or text.endswith((".", "!", "?", "…")) else f"{text}."


def _variants(field: Mapping[str, Any], defs: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    if "$ref" in field:
        return [defs[field["$ref"].rpartition("/")[2]]]
    alternatives = field.get("anyOf") or field.get("oneOf")
    return [each for one in alternatives for each in _variants(one, defs)] if alternatives else [field]


def _objects(field: Mapping[str, Any], defs: Mapping[str, Any]) -> Iterator[tuple[Mapping[str, Any], str]]:
    for variant in _variants(field, defs):
        if variant.get("type") == "object" and "properties" in variant:
            yield variant, ""
        elif variant.get("type") == "array" and isinstance(variant.get("items"), Mapping):
            yield from ((inner, f"[]{suffix}") for inner, suffix in _objects(variant["items"], defs))


def _kind(field: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    return " or ".join(dict.fromkeys(_one_kind(variant, defs) for variant in _variants(field, defs)))


def _one_kind(field: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{json.dumps(value)}`" for value in field["enum"])
    if "const" in field:
        return f"`{json.dumps(field['const'])}`"
    kind = str(field.get("type", "any"))
    if kind == "array":
        inner = _kind(field["items"], defs) if field.get("items") else "any"
        return f"list of {inner}" + _bounds(field, "minItems", "maxItems")
    if kind == "object" and isinstance(field.get("additionalProperties"), Mapping):
        return f"object of {_kind(field['additionalProperties'], defs)}"
    return kind + _bounds(field, "minimum", "maximum")


def _bounds(field: Mapping[str, Any], least: str, most: str) -> str:
    low, above, high = field.get(least), field.get("exclusiveMinimum"), field.get(most)
    if low is not None and high is not None:
        return f", {_number(low)} to {_number(high)}"
    parts = [
        f"above {_number(above)}" if above is not None else "",
        f"at least {_number(low)}" if low is not None else "",
        f"at most {_number(high)}" if high is not None else "",
    ]
    return "".join(f", {part}" for part in parts if part)


def _number(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:g}"


def _media(task: Task) -> dict[str, str]:
    found: dict[str, str] = {}

    def look(value: Any) -> None:
        if isinstance(value, Mapping):
            for inner in value.values():
                look(inner)
        elif isinstance(value, list):
            for inner in value:
                look(inner)
        elif _is_file(value) and value not in found:
            family, _, form = value[5 : value.index(";")].partition("/")
            number = str(len(found) + 1) if found else ""
            found[value] = f"{NAMES.get(family, family)}{number}.{EXTENSIONS.get(form, form)}"

    look(task.example.input)
    return found


def _is_file(value: Any) -> bool:
    return isinstance(value, str) and value.startswith("data:") and len(value) > LONG


def _preparation(task: Task) -> str:
    names = [f"`{name}`" for name in _media(task).values()]
    return f"Put a file of your own in this folder as {' and '.join(names)}, then run:" if names else ""


def _body(task: Task, batched: bool) -> dict[str, Any]:
    body = {name: value for name, value in task.example.input.items() if value != {}}
    if batched:
        other = task.samples(2)[1] if task.samples else {}
        for name in task.batched_fields:
            if name in body:
                second = other.get(name, body[name])
                body[name] = [body[name], body[name] if _media(task) else second]
    return body


def _curl(task: Task, batched: bool = False) -> str:
    part = "batched/" if batched else ""
    address = f"{SERVER}/api/tasks/{task.name}/{part}{task.example.model}/jobs"
    text = json.dumps(_body(task, batched), ensure_ascii=False)
    media = _media(task)
    lines = []
    if media:
        # The shell inserts the files, so characters with a meaning for the shell are escaped.
        text = text.replace("\\", "\\\\").replace("$", "\\$").replace("`", "\\`")
        for url, name in media.items():
            header = url.partition(",")[0]
            text = text.replace(url, f"{header},$(base64 < {name} | tr -d '\\n')")
        lines += ["cat > job.json <<JSON", text, "JSON"]
        data = "@job.json"
    else:
        data = "'" + text.replace("'", "'\\''") + "'"
    lines += [
        f"curl -s {address} \\",
        f"  -H 'Prefer: wait=60' -H 'Content-Type: application/json' -d {data}",
    ]
    return "\n".join(["```bash", *lines, "```"])


def _python(task: Task) -> str:
    media = _media(task)
    pairs = _body(task, batched=False).items()
    lines = [
        *(["from pathlib import Path", ""] if media else []),
        "from modelmill import Client",
        "",
        f'with Client("{SERVER}") as client:',
        "    result = client.run(",
        f'        "{task.name}",',
        f'        "{task.example.model}",',
        *(f"        {name}={_literal(value, media)}," for name, value in pairs),
        "    )",
        "    print(result)",
    ]
    return "\n".join(["```python", *lines, "```"])


def _literal(value: Any, media: Mapping[str, str]) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f'"{key}": {_literal(inner, media)}' for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_literal(inner, media) for inner in value) + "]"
    if isinstance(value, str) and value in media:
        return f'Path("{media[value]}")'
    return json.dumps(value, ensure_ascii=False) if isinstance(value, str) else repr(value)


def _answer(task: Task) -> str:
    shown = json.dumps(_abridged(task.example.output), ensure_ascii=False, indent=2)
    said = "answered" if task.example.real else "answers in this form; the values here are only examples"
    return f"`{task.example.model}` {said}:\n\n```json\n{shown}\n```"


def _abridged(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _abridged(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_abridged(inner) for inner in value]
    return f"{value[:LONG]}…" if isinstance(value, str) and len(value) > LONG else value


if __name__ == "__main__":
    main()
