"""Errors on the wire: RFC 9457 ``application/problem+json``, each from the one table in ``errors``."""

from __future__ import annotations

import logging
import math
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from modelmill.errors import ERRORS, ErrorCode, FieldError, ModelmillError
from modelmill_api.methods import METHODS, allows_method

logger = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"


class FieldProblem(BaseModel):
    """A field of the request that is wrong."""

    field: str = Field(description="Where, as a dotted path.")
    message: str = Field(description="What is wrong with it.")


class Problem(BaseModel):
    """RFC 9457 problem details. Branch on ``code``; show ``detail``."""

    type: str = Field(
        description="A name for the kind of problem.", examples=["urn:modelmill:problem:model_not_found"]
    )
    title: str
    status: int
    detail: str = Field(description="What was wrong, where, and what to do.")
    code: ErrorCode = Field(description="Stable; the same codes appear in failed jobs.")
    retryable: bool = Field(description="Whether the same request may succeed later.")
    errors: list[FieldProblem] | None = Field(None, description="The fields, for an invalid body.")


def problem_response(error: ModelmillError, headers: dict[str, str] | None = None) -> JSONResponse:
    """The response for an error."""
    spec = error.spec
    body: dict[str, Any] = {
        "type": f"urn:modelmill:problem:{error.code.value}",
        "title": spec.title,
        "status": spec.status,
        "detail": error.message,
        "code": error.code.value,
        "retryable": spec.retryable,
    }
    if error.fields:
        body["errors"] = [{"field": item.field, "message": item.message} for item in error.fields]
    headers = {**error.headers, **(headers or {})}
    if error.retry_after_s is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after_s)))
    if error.code is ErrorCode.BODY_TOO_LARGE:
        # The rest of the body is not read, so the connection cannot be used again.
        headers["Connection"] = "close"
    return JSONResponse(body, spec.status, headers, MEDIA_TYPE)


def describe_problems(*codes: ErrorCode) -> dict[int | str, dict[str, Any]]:
    """OpenAPI entries for the problems that a route may answer with."""
    documented: dict[int | str, dict[str, Any]] = {}
    for code in codes:
        status = ERRORS[code].status
        known = documented.get(status, {}).get("description", "")
        documented[status] = {
            "description": f"{known}, {code.value}".removeprefix(", "),
            "content": {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}},
        }
    return documented


BODY_PROBLEMS = (
    ErrorCode.BODY_TOO_LARGE,
    ErrorCode.UNSUPPORTED_ENCODING,
    ErrorCode.SERVER_BUSY,
)
"""Why the API may refuse a body before it is parsed."""

SUBMIT_REFUSALS = (
    ErrorCode.MODEL_NOT_FOUND,
    ErrorCode.TASK_NOT_SUPPORTED,
    ErrorCode.INVALID_INPUT,
    ErrorCode.INVALID_MEDIA,
    ErrorCode.MEDIA_TOO_LARGE,
    ErrorCode.MEDIA_SOURCE_REFUSED,
    ErrorCode.MEDIA_NOT_FOUND,
    ErrorCode.MEDIA_FETCH_FAILED,
    ErrorCode.IDEMPOTENCY_CONFLICT,
    ErrorCode.QUEUE_FULL,
    ErrorCode.STORE_FULL,
    ErrorCode.STORE_UNAVAILABLE,
)
"""Why the API may refuse to make a job of a request."""

READ_PROBLEMS = describe_problems(ErrorCode.JOB_NOT_FOUND, ErrorCode.STORE_UNAVAILABLE)


def install(app: FastAPI) -> None:
    """Makes every error of ``app`` a problem."""

    async def on_known(_: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, ModelmillError)
        return problem_response(error)

    async def on_http(request: Request, error: Exception) -> JSONResponse:
        assert isinstance(error, HTTPException)
        headers = dict(error.headers or {})
        if error.status_code == 405:
            # A route knows only its own methods, and an address may have several routes.
            headers["Allow"] = ", ".join(method for method in METHODS if allows_method(request.scope, method))
            code = ErrorCode.METHOD_NOT_ALLOWED
            message = f"{request.method} is not allowed here."
        else:
            code = ErrorCode.NOT_FOUND
            message = "There is nothing at this address. The API is described at /docs."
        return problem_response(ModelmillError(code, message), headers)

    async def on_parameter(_: Request, error: Exception) -> JSONResponse:
        # The tasks' contracts parse bodies; only headers and parameters of paths and queries come here.
        assert isinstance(error, RequestValidationError)
        fields = [
            FieldError(".".join(str(part) for part in item["loc"]), item["msg"]) for item in error.errors()
        ]
        message = f"{fields[0].field}: {fields[0].message}"
        return problem_response(ModelmillError(ErrorCode.INVALID_INPUT, message, fields=fields))

    async def on_gone(_: Request, __: Exception) -> Response:
        # The client hung up in the middle of its body and reads no answer.
        return Response(status_code=400)

    async def on_unknown(request: Request, error: Exception) -> JSONResponse:
        logger.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return problem_response(
            ModelmillError(ErrorCode.INTERNAL, "An error inside the server. It was logged; please report it.")
        )

    app.add_exception_handler(ModelmillError, on_known)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(RequestValidationError, on_parameter)
    app.add_exception_handler(ClientDisconnect, on_gone)
    app.add_exception_handler(Exception, on_unknown)
