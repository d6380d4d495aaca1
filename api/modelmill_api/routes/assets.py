"""The files that the page at ``/docs`` needs. They need no key."""

from __future__ import annotations

import asyncio
import hashlib
import mimetypes
from pathlib import Path

from fastapi import FastAPI
from starlette.responses import Response
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from modelmill.errors import ErrorCode, ModelmillError
from modelmill_api.middleware.edge import ASSETS
from modelmill_api.problems import problem_response

PIECE_BYTES = 16 * 1024


def keep_assets(app: FastAPI) -> None:
    """Lets the files come from memory, where FastAPI would find, open and read them in threads.

    A thousand requests at once for such a file kept all other requests out for seconds.
    """
    for route in app.routes:
        if isinstance(route, Mount) and route.path + "/" == ASSETS and isinstance(route.app, StaticFiles):
            route.app = _Assets(Path(str(route.app.directory)))


class _Assets:
    def __init__(self, folder: Path) -> None:
        self._paths = {path.name: path for path in folder.iterdir() if path.is_file()}
        self._turn = asyncio.Lock()
        self._files: dict[str, tuple[bytes, dict[str, str]]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path"].partition(ASSETS)[2]
        if scope["method"] not in ("GET", "HEAD"):
            error = ModelmillError(ErrorCode.METHOD_NOT_ALLOWED, f"{scope['method']} is not allowed here.")
            await problem_response(error, {"Allow": "GET, HEAD"})(scope, receive, send)
            return
        if name not in self._paths:
            error = ModelmillError(ErrorCode.NOT_FOUND, "There is nothing at this address.")
            await problem_response(error)(scope, receive, send)
            return
        content, headers = self._read(name)
        known = b",".join(value for field, value in scope["headers"] if field == b"if-none-match")
        if headers["ETag"].encode() in known:
            await Response(None, 304, headers)(scope, receive, send)
            return
        sized = headers | {"Content-Length": str(len(content))}
        start = Response(None, 200, sized, mimetypes.guess_type(name)[0])
        await send({"type": "http.response.start", "status": 200, "headers": start.raw_headers})
        for at in range(0, len(content), PIECE_BYTES):
            # In pieces, so that a client that reads nothing costs no more than one of them; and one piece for
            # each turn of the event loop, so that many clients do not fill its turns.
            async with self._turn:
                await asyncio.sleep(0)
            piece = content[at : at + PIECE_BYTES]
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    def _read(self, name: str) -> tuple[bytes, dict[str, str]]:
        if name not in self._files:
            content = self._paths[name].read_bytes()
            digest = hashlib.sha256(content).hexdigest()[:32]
            self._files[name] = content, {"ETag": f'"{digest}"', "Cache-Control": "no-cache"}
        return self._files[name]
