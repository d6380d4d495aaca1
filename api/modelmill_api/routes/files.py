"""Files: you upload one once, and any number of jobs can name it."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import IO, Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.store.files import FileRecord, NewFile, file_gone
from modelmill_api.body import declared_length
from modelmill_api.callers import caller_of
from modelmill_api.encodings import decoded
from modelmill_api.problems import BODY_PROBLEMS, describe_problems
from modelmill_api.room import Place
from modelmill_api.schemas import FileDocument
from modelmill_api.state import ApiState, State
from modelmill_tasks.limits import MediaLimits
from modelmill_tasks.shared.sniffing import sniff
from modelmill_tasks.shared.sources import FILE_SCHEME

IN_MEMORY_BYTES = 1024 * 1024
"""Uploads up to this size are not written to disk on their way to the store."""
AROUND_BYTES = 64 * 1024
"""Bytes that a multipart body may hold in addition to the file."""
MAX_PARTS = 64
"""Parts of one upload. A form of a web page has other fields besides the file; they are left out."""
FIELDS_BYTES = 32 * 1024
"""Bytes of these other fields together."""
PART_HEAD_BYTES = 8 * 1024
_ONE_FILE = "Send one file in an upload, as multipart/form-data in a part that is named file."

router = APIRouter(tags=["files"])


class _Upload:
    """Writes the part ``file`` of a multipart body into a file. Other fields of a form are left out."""

    def __init__(self, content_type: str, file: IO[bytes], limit_bytes: int) -> None:
        kind, options = parse_options_header(content_type)
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise _bad_upload(_ONE_FILE)
        callbacks: Any = {
            "on_part_begin": self._begin,
            "on_header_field": self._on_field,
            "on_header_value": self._on_value,
            "on_header_end": self._on_header,
            "on_headers_finished": self._on_headers,
            "on_part_data": self._on_data,
            "on_end": self._on_end,
        }
        try:
            self._parser = MultipartParser(options[b"boundary"], callbacks)
        except FormParserError:
            raise _bad_upload(
                "The boundary in Content-Type cannot be used; RFC 2046 allows 70 characters."
            ) from None
        self._file = file
        self._limit = limit_bytes
        self._field = self._value = b""
        self._headers: dict[bytes, bytes] = {}
        self._parts = 0
        self._fields_bytes = 0
        self._has_file = self._in_file = False
        self._done = False
        self._sha256 = hashlib.sha256()
        self.size = 0
        self.name: str | None = None

    def write(self, data: bytes) -> None:
        """Takes the next bytes of the body. Blocks while it writes.

        Raises:
            ModelmillError: the body is malformed, or the file is too large.
        """
        try:
            self._parser.write(data)
        except FormParserError:
            raise _bad_upload("The body is not multipart/form-data as its Content-Type says.") from None

    def finish(self) -> None:
        """Checks that the body is whole.

        Raises:
            ModelmillError: the body ended too early, or held no file.
        """
        if not self._done or not self._has_file:
            problem = "holds no part that is named file" if self._done else "ends too early"
            raise _bad_upload(f"The body {problem}. {_ONE_FILE}")
        if not self.size:
            raise _bad_upload("The file is empty.")

    def describe(self, owner: str, limits: MediaLimits) -> NewFile:
        media_type, error = sniff(cast("Any", self._file), limits)
        self._file.seek(0)
        problem = None if error is None else (error.code.value, error.message)
        return NewFile(owner, self.size, self._sha256.hexdigest(), media_type, self.name, problem)

    def _begin(self) -> None:
        self._parts += 1
        self._headers = {}
        self._in_file = False
        if self._parts > MAX_PARTS:
            raise _bad_upload(f"The form has more than {MAX_PARTS} fields. {_ONE_FILE}")

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._field += data[start:end]
        self._check_head()

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._check_head()

    def _check_head(self) -> None:
        size = sum(map(len, self._headers)) + sum(map(len, self._headers.values()))
        if size + len(self._field) + len(self._value) > PART_HEAD_BYTES:
            raise _bad_upload(f"The headers of a part are larger than {PART_HEAD_BYTES} bytes.")

    def _on_header(self) -> None:
        self._headers[self._field.lower()] = self._value
        self._field = self._value = b""

    def _on_headers(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise _bad_upload(f"A part has no name. {_ONE_FILE}")
        if options[b"name"] != b"file":
            if options.get(b"filename"):
                raise _bad_upload(f"A part with another name holds a file. {_ONE_FILE}")
            return
        if self._has_file:
            raise _bad_upload(f"The body holds several parts that are named file. {_ONE_FILE}")
        encoding = self._headers.get(b"content-transfer-encoding", b"binary").strip().lower()
        if encoding not in (b"binary", b"8bit", b"7bit"):
            raise _bad_upload("The file has a Content-Transfer-Encoding. Send its bytes as they are.")
        self._has_file = self._in_file = True
        self.name = _plain_name(options.get(b"filename", b""))

    def _on_data(self, data: bytes, start: int, end: int) -> None:
        if not self._in_file:
            self._fields_bytes += end - start
            if self._fields_bytes > FIELDS_BYTES:
                raise _bad_upload(f"The other fields hold more than {FIELDS_BYTES} bytes. {_ONE_FILE}")
            return
        self.size += end - start
        if self.size > self._limit:
            raise _too_large(self._limit)
        piece = memoryview(data)[start:end]
        self._sha256.update(piece)
        self._file.write(piece)

    def _on_end(self) -> None:
        self._done = True


@router.post(
    "/api/files",
    status_code=201,
    response_model=FileDocument,
    responses=describe_problems(
        *BODY_PROBLEMS, ErrorCode.INVALID_INPUT, ErrorCode.STORE_FULL, ErrorCode.STORE_UNAVAILABLE
    ),
    summary="Upload a file",
    description="As multipart/form-data with a part that is named `file`; other fields of a form are left "
    "out. The answer's `id` can then stand wherever "
    "a task takes an image or audio.",
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {"file": {"type": "string", "format": "binary"}},
                        "required": ["file"],
                    }
                }
            },
        },
        "responses": {"201": {"headers": {"Location": {"schema": {"type": "string"}}}}},
    },
)
async def upload(request: Request, response: Response, state: State) -> FileDocument:
    record = await _receive(request, state, caller_of(request).id)
    document = _document(record)
    response.headers["Location"] = f"/api/files/{document.id}"
    return document


async def _receive(request: Request, state: ApiState, owner: str) -> FileRecord:
    limit = state.settings.max_file_bytes
    declared = declared_length(request)
    if declared > limit + AROUND_BYTES:
        raise _too_large(limit)
    with Place(state.room) as place, tempfile.SpooledTemporaryFile(IN_MEMORY_BYTES) as file:
        parts = _Upload(request.headers.get("content-type", ""), file, limit)
        await place.resize(min(declared or limit, 2 * IN_MEMORY_BYTES))
        taken, waiting = 0, bytearray()
        async for chunk in decoded(request):
            taken += len(chunk)
            if taken > limit + AROUND_BYTES:
                raise _too_large(limit)
            waiting += chunk
            if len(waiting) >= IN_MEMORY_BYTES:
                await run_in_threadpool(parts.write, bytes(waiting))
                waiting.clear()
        await run_in_threadpool(parts.write, bytes(waiting))
        parts.finish()
        new_file = await run_in_threadpool(parts.describe, owner, state.media_limits)
        return await state.store.files.add(new_file, file)


_FILE_PROBLEMS = describe_problems(ErrorCode.FILE_NOT_FOUND, ErrorCode.STORE_UNAVAILABLE)
_CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bytes",
        "content": {
            media_type: {"schema": {"type": "string", "format": "binary"}}
            for media_type in ("application/octet-stream", "image/*", "audio/*")
        },
    }
}


@router.get(
    "/api/files/{id}",
    response_class=StreamingResponse,
    responses=_CONTENT | _FILE_PROBLEMS,
    summary="Download a file",
    description="With the media type that its bytes have. You can write the id with or without `file:`.",
)
async def download(id: str, request: Request, state: State) -> Response:
    file = await _find(id, request, state)
    return StreamingResponse(state.store.files.read(file), 200, _headers(file), file.media_type)


@router.head(
    "/api/files/{id}",
    response_class=Response,
    responses={200: {"description": "The file exists"}, **_FILE_PROBLEMS},
    summary="Read a file's headers without its bytes",
)
async def look(id: str, request: Request, state: State) -> Response:
    file = await _find(id, request, state)
    return Response(None, 200, _headers(file), file.media_type)


@router.delete(
    "/api/files/{id}",
    status_code=204,
    responses=_FILE_PROBLEMS,
    summary="Delete a file",
    description="It can no longer be named or read. Jobs that were accepted with it still run.",
)
async def delete(id: str, request: Request, state: State) -> Response:
    if not await state.store.files.delete(_plain_id(id), caller_of(request).id):
        raise file_gone()
    return Response(status_code=204)


async def _find(id: str, request: Request, state: ApiState) -> FileRecord:
    file = await state.store.files.find(_plain_id(id), caller_of(request).id)
    if file is None:
        raise file_gone()
    return file


def _plain_id(id: str) -> str:
    return id.removeprefix(FILE_SCHEME)


def _headers(file: FileRecord) -> Mapping[str, str]:
    return {
        "Content-Length": str(file.size),
        # Browsers must not show it as a page of this server, no matter what its bytes are.
        "Content-Disposition": "attachment",
    }


def _document(record: FileRecord) -> FileDocument:
    return FileDocument(
        id=FILE_SCHEME + record.id,
        bytes=record.size,
        media_type=record.media_type,
        sha256=record.sha256,
        name=record.name,
        created_at=datetime.fromtimestamp(record.created_at, UTC),
        expires_at=datetime.fromtimestamp(record.expires_at, UTC),
    )


def _plain_name(name: bytes) -> str | None:
    """The last part of a file's name, as printable text."""
    text = re.split(r"[/\\]", name.decode(errors="replace"))[-1]
    return "".join(character for character in text if character.isprintable()).strip()[:255] or None


def _bad_upload(message: str) -> ModelmillError:
    return ModelmillError(ErrorCode.INVALID_INPUT, message)


def _too_large(limit_bytes: int) -> ModelmillError:
    return ModelmillError(ErrorCode.BODY_TOO_LARGE, f"The file is over the limit of {limit_bytes} bytes.")
