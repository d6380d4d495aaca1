"""``Content-Encoding``: request bodies that their client has compressed."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator, Iterator

from fastapi import Request
from starlette.concurrency import run_in_threadpool

from modelmill.errors import ErrorCode, ModelmillError

PIECE_BYTES = 256 * 1024
"""The most that comes out of one step of decoding, however well it was compressed."""
MAX_MEMBERS = 10_000
"""Gzip bodies may be several in a row, as parallel compressors write them."""

_TAKEN = "gzip, deflate"


def encoding_of(request: Request) -> str:
    """``gzip`` or ``deflate``; empty if the body is as it is.

    Raises:
        ModelmillError: ``unsupported_encoding``.
    """
    if not any(name == b"content-encoding" for name, _ in request.scope["headers"]):
        return ""
    named = ",".join(request.headers.getlist("content-encoding")).lower()
    encodings = [name for part in named.split(",") if (name := part.strip()) not in ("", "identity")]
    if not encodings:
        return ""
    if len(encodings) > 1 or encodings[0] not in ("gzip", "x-gzip", "deflate"):
        raise ModelmillError(
            ErrorCode.UNSUPPORTED_ENCODING,
            f"Content-Encoding: {', '.join(encodings)[:60]!r} is not taken. Send the body as it is, "
            f"or with one of {_TAKEN}.",
            headers={"Accept-Encoding": _TAKEN},
        )
    return encodings[0].removeprefix("x-")


def decoded(request: Request) -> AsyncIterator[bytes]:
    """The pieces of a request's body, without its ``Content-Encoding``. They may be empty.

    Raises:
        ModelmillError: ``unsupported_encoding``, or ``invalid_input`` if the body is not encoded so.
    """
    encoding = encoding_of(request)
    return _decoded(request, encoding) if encoding else request.stream()


async def _decoded(request: Request, encoding: str) -> AsyncIterator[bytes]:
    decoder = _Decoder(encoding)
    async for chunk in request.stream():
        pieces = decoder.feed(chunk)
        # In a thread, as a small chunk can become a large piece.
        while (piece := await run_in_threadpool(next, pieces, None)) is not None:
            yield piece
    decoder.finish()


class _Decoder:
    """Decodes one body, piece by piece."""

    def __init__(self, encoding: str) -> None:
        self._encoding = encoding
        self._inner: zlib._Decompress | None = None
        self._begun = b""
        self._members = 0

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The pieces that are in ``data``, each of at most ``PIECE_BYTES``.

        Raises:
            ModelmillError: ``invalid_input``.
        """
        data = self._begun + data
        self._begun = b""
        while data:
            if self._inner is None:
                if self._encoding == "deflate" and len(data) < 2:
                    self._begun = data
                    return
                self._inner = self._begin(data)
            full = True
            # If a piece is full, there may be more, also if all input is taken.
            while data or full:
                try:
                    piece = self._inner.decompress(data, PIECE_BYTES)
                except zlib.error:
                    raise _broken(self._encoding) from None
                if piece:
                    yield piece
                full, data = len(piece) == PIECE_BYTES, self._inner.unconsumed_tail
            if self._inner.eof:
                data, self._inner = self._inner.unused_data, None

    def finish(self) -> None:
        """Raises ``invalid_input`` if the body is cut."""
        if self._inner is not None or self._begun or not self._members:
            raise _broken(self._encoding)

    def _begin(self, data: bytes) -> zlib._Decompress:
        self._members += 1
        if self._members > (MAX_MEMBERS if self._encoding == "gzip" else 1):
            raise _broken(self._encoding)
        if self._encoding == "gzip":
            return zlib.decompressobj(wbits=31)
        # RFC 9110 means a zlib stream; some clients send the bare deflate stream.
        is_zlib = data[0] & 0x0F == 8 and (data[0] * 256 + data[1]) % 31 == 0
        return zlib.decompressobj(wbits=15 if is_zlib else -15)


def _broken(encoding: str) -> ModelmillError:
    return ModelmillError(
        ErrorCode.INVALID_INPUT, f"The body is not whole {encoding} data, as its Content-Encoding says."
    )
