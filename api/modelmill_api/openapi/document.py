"""Makes the OpenAPI document: the tasks' schemas come from their contracts."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel

from modelmill.errors import ErrorCode
from modelmill_api.middleware.auth import is_public
from modelmill_api.problems import Problem, describe_problems
from modelmill_api.schemas import CollectInput, Deleted, JobDocument, JobError
from modelmill_tasks.contract import Task
from modelmill_tasks.registry import all_tasks

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
    """The answers of a task's submit route: a 202, or the ended job if the caller waited for it."""
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


def bulk(task: Task) -> dict[str, Any]:
    """The body and the answer of a task's bulk submit: lines of JSON."""
    example = json.dumps(task.example.input, separators=(",", ":")) + "\n"
    accepted = '{"id":"05032039-e7dd-4ca5-8941-ebff9f5f2e09","status":"starting"}\n'
    return {
        "requestBody": {
            "required": True,
            "content": _lines(f"Each line is a {_input_name(task, False)}.", example),
        },
        "responses": {"200": {"description": "A line for each line", "content": _lines("", accepted)}},
    }


def _lines(description: str, example: str) -> dict[str, Any]:
    return {
        "application/x-ndjson": {"schema": {"type": "string", "description": description}, "example": example}
    }


_WAITED = {
    "Preference-Applied": _header("`wait=n`, if `Prefer: wait` was honoured; n is the wait that applied.")
}


_JOB = {"application/json": {"schema": {"$ref": COMPONENTS + "JobDocument"}}}
ACCEPTED_OR_ENDED: dict[str, Any] = {
    "responses": {
        "200": {
            "description": "The job ended within the time that `Prefer: wait` gave it",
            "headers": {"Location": _header("Where to read the job."), **_WAITED},
            "content": _JOB,
        },
        "202": {"headers": {"Location": _header("Where to read the job."), **_WAITED}},
    }
}
"""The answers of a route that submits jobs of any task."""
COLLECT: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": COMPONENTS + "CollectInput"}}},
    },
    "responses": {
        "200": {
            "description": "The jobs that have ended, or how many were deleted",
            "headers": _WAITED,
            "content": _lines("Each line is a JobDocument, or an id with an error.", "")
            | {"application/json": {"schema": {"$ref": COMPONENTS + "Deleted"}}},
        }
    },
}


def install(app: FastAPI, documented: Callable[[], APIRouter], *, with_keys: bool) -> None:
    """Gives ``app`` an OpenAPI document with the tasks' schemas. The first request for it makes it.

    Args:
        app: The application.
        documented: Makes routes that are in the document together with those of ``app``.
        with_keys: Whether callers need an API key.
    """

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=[*documented().routes, *app.routes],
            )
            schemas = document.setdefault("components", {}).setdefault("schemas", {})
            _drop_default_422(document)
            _add_refusals(document, with_keys)
            schemas |= _schemas("", Problem) | _schemas("", JobDocument) | _schemas("", JobError)
            schemas |= _schemas("", CollectInput) | _schemas("", Deleted)
            for task in all_tasks().values():
                prefix = _camel(task)
                schemas |= _schemas(prefix, task.input, prefix + "Input")
                schemas |= _schemas(prefix, task.batched_input, _input_name(task, batched=True))
                schemas |= _schemas(prefix, task.output, prefix + "Output", mode="serialization")
            app.openapi_schema = document
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


def _drop_default_422(document: dict[str, Any]) -> None:
    """Removes the 422 that FastAPI documents for parameters. Ours are problems, and listed as such."""
    for operations in document["paths"].values():
        for operation in operations.values():
            body = operation["responses"].get("422", {}).get("content", {}).get("application/json", {})
            if body.get("schema", {}).get("$ref", "").endswith("/HTTPValidationError"):
                del operation["responses"]["422"]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _add_refusals(document: dict[str, Any], with_keys: bool) -> None:
    """Adds what middleware answers instead of a route, and the headers about a key's rate."""
    refusals = describe_problems(ErrorCode.FORBIDDEN)
    if with_keys:
        refusals |= describe_problems(ErrorCode.UNAUTHENTICATED)
        document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    guarded = (operations for path, operations in document["paths"].items() if not is_public(path))
    for operation in (operation for operations in guarded for operation in operations.values()):
        answers = operation["responses"]
        answers |= {str(status): answer for status, answer in refusals.items()}
        if with_keys:
            operation["security"] = [{"key": []}]
        if "429" in answers:
            answers |= {
                str(status): answer
                for status, answer in describe_problems(
                    ErrorCode.FORBIDDEN,
                    ErrorCode.LANE_NOT_ALLOWED,
                    ErrorCode.QUEUE_FULL,
                    ErrorCode.QUOTA_EXCEEDED,
                    ErrorCode.RATE_LIMITED,
                ).items()
            }
            for status in {"200", "202", "429"} & answers.keys():
                answers[status]["headers"] = answers[status].get("headers", {}) | _LIMITED


_LIMITED = {
    "RateLimit-Policy": _header("The rate of the key: `q` jobs in `w` seconds."),
    "RateLimit": _header("The rest of the rate: `r` jobs now, and more after `t` seconds."),
}


def _schemas(prefix: str, model: type[BaseModel], name: str = "", mode: Any = "validation") -> dict[str, Any]:
    """A model's schema and those that it refers to, each under a name that no other task uses."""
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
