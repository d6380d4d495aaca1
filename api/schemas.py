"""OpenAPI of the tasks, made from their contracts."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from api.documents import JobDocument, JobError
from api.problems import Problem
from tasks.contract import Task
from tasks.registry import all_tasks

COMPONENTS = "#/components/schemas/"


def request_body(task: Task, batched: bool) -> dict[str, Any]:
    """The ``requestBody`` of a task's submit route, with an example that works when pasted."""
    example = _batched_example(task) if batched else task.example.input
    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {"$ref": COMPONENTS + _input_name(task, batched)},
                    "example": example,
                }
            },
        }
    }


def job_response(task: Task, batched: bool) -> dict[str, Any]:
    """The 200 of a task's read route: the job document with this task's result."""
    return {"responses": {"200": {"headers": _WAITED, "content": _job_content(task, batched)}}}


def submit_responses(task: Task, batched: bool) -> dict[str, Any]:
    """The answers of a task's submit route: accepted, or the ended job of a caller who waited."""
    headers = {"Location": _header("Where to read the job."), **_WAITED}
    ended = {
        "description": "The job ended within the time that `Prefer: wait` gave it",
        "headers": headers,
        "content": _job_content(task, batched),
    }
    return {"responses": {"200": ended, "202": {"headers": headers}}}


def _job_content(task: Task, batched: bool) -> dict[str, Any]:
    result: dict[str, Any] = {"$ref": COMPONENTS + _camel(task) + "Output"}
    if batched:
        failed = {
            "type": "object",
            "properties": {"error": {"$ref": COMPONENTS + "JobError"}},
            "required": ["error"],
        }
        result = {"type": "array", "items": {"anyOf": [result, failed]}}
    schema = {
        "allOf": [
            {"$ref": COMPONENTS + "JobDocument"},
            {"type": "object", "properties": {"result": result}},
        ]
    }
    return {"application/json": {"schema": schema}}


def _header(description: str) -> dict[str, Any]:
    return {"description": description, "schema": {"type": "string"}}


_WAITED = {"Preference-Applied": _header("`wait=n`, when `Prefer: wait` was honoured: the n that applied.")}


def install(app: FastAPI, documented: APIRouter) -> None:
    """Gives ``app`` an OpenAPI document that holds the tasks' schemas, made when first asked for.

    Args:
        app: The application.
        documented: Routes that stand in the document beside those of ``app``.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=[*documented.routes, *app.routes],
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            _forget_default_422(document)
            schemas |= _schemas("", Problem) | _schemas("", JobDocument) | _schemas("", JobError)
            for task in all_tasks().values():
                prefix = _camel(task)
                schemas |= _schemas(prefix, task.input, prefix + "Input")
                schemas |= _schemas(prefix, task.batched_input, _input_name(task, batched=True))
                schemas |= _schemas(prefix, task.output, prefix + "Output", mode="serialization")
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _forget_default_422(document: dict[str, Any]) -> None:
    """FastAPI documents its own 422 wherever there is a parameter; ours are problems, and listed as such."""
    for operations in document["paths"].values():
        for operation in operations.values():
            body = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
            if body.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _schemas(prefix: str, model: type[BaseModel], name: str = "", mode: Any = "validation") -> dict[str, Any]:
    """A model's schema and those it refers to, each under a name that no other task uses."""
    schema = model.model_json_schema(ref_template=COMPONENTS + prefix + "{model}", mode=mode)
    parts = schema.pop("$defs", {})
    return {name or model.__name__: schema} | {prefix + part: value for part, value in parts.items()}


def _batched_example(task: Task) -> dict[str, Any]:
    """The plain example, with each batched field twice."""
    return {
        name: [value, value] if name in task.batched_fields else value
        for name, value in task.example.input.items()
    }


def _camel(task: Task) -> str:
    return "".join(part.capitalize() for part in task.name.split("-"))


def _input_name(task: Task, batched: bool) -> str:
    return ("Batched" if batched else "") + _camel(task) + "Input"
