"""The HTTP protocol with which uvicorn serves the API: uvicorn's own, with bounds.

uvicorn with httptools bounds neither the head of a request, nor the requests that wait behind another one,
nor how long a client may take. All of this happens before a key is checked, so it is bounded here.
"""

from __future__ import annotations

import asyncio
import weakref
from functools import lru_cache
from typing import Any

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol, RequestResponseCycle
from uvicorn.server import ServerState

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import get_settings
from modelmill_api.crowd import Bounds, Crowd
from modelmill_api.problems import problem_response

HEAD_PIECE = 8 * 1024
"""The most of a head that is parsed before the bounds are checked again."""
BODY_PIECE = 64 * 1024
MAX_PIPELINED = 64
"""Requests that the parser may find behind one that is still being answered, in one piece of a body."""
HELD_BYTES = 64 * 1024
"""The size of what came too early at which reading pauses."""
MAX_HELD_BYTES = 1024 * 1024
LINGER_S = 2.0
LINGER_BYTES = 8 * 1024 * 1024
"""How long a refused client may go on sending, and how much. If the connection were closed at once, it
could lose its answer."""
UNREAD_S = 300.0
"""How long a client may neither read its answer nor send anything."""
QUIET_BODY_S = 300.0
"""How long a body may pause if its answer has begun, as that of a bulk submit has."""


class _Joined:
    """A transport that sends all writes of one turn of the event loop together.

    Two packets would be two system calls here, and would wake the client twice.
    """

    def __init__(self, transport: Any, protocol: ApiProtocol) -> None:
        self._transport = transport
        self._protocol = protocol
        self._waiting: list[bytes] = []
        self._loop = asyncio.get_running_loop()

    def write(self, data: bytes) -> None:
        if not self._waiting:
            self._loop.call_soon(self._flush)
        self._waiting.append(data)

    def write_eof(self) -> None:
        self._flush()
        if self._transport.can_write_eof() and not self._transport.is_closing():
            self._transport.write_eof()

    def close(self) -> None:
        self._flush()
        if not self._protocol.lingers():
            self._transport.close()

    def _flush(self) -> None:
        if self._waiting:
            data, self._waiting = b"".join(self._waiting), []
            if not self._transport.is_closing():
                self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


_crowds: weakref.WeakKeyDictionary[ServerState, Crowd] = weakref.WeakKeyDictionary()


@lru_cache(maxsize=1)
def _own_bounds() -> Bounds:
    return Bounds.from_settings(get_settings())


class ApiProtocol(HttpToolsProtocol):
    """One connection."""

    def __init__(self, config: Config, server_state: ServerState, *rest: Any, **more: Any) -> None:
        super().__init__(config, server_state, *rest, **more)
        crowd = _crowds.get(server_state)
        if crowd is None:
            crowd = _crowds[server_state] = Crowd(self._make_bounds(), self.loop)
        self._crowd = crowd
        self._bounds = crowd.bounds
        self._answered: RequestResponseCycle | None = None
        """The request that is being answered, or was the last one."""
        self._in_head = self._in_body = False
        """Where in a request the parser is. Between requests, both are false."""
        self._head_bytes = 0
        self._held = bytearray()
        """What came before the request in front of it was answered."""
        self._counted = 0
        """Bytes of this connection that the crowd has counted as unparsed."""
        self._since = 0.0
        """When the connection was made, the head began, or the last answer ended."""
        self._body_bytes = 0
        self._body_since = 0.0
        """The body's bytes since this time, for its rate."""
        self._over_since: float | None = None
        """Since when nothing of this client is parsed any longer, if it was refused."""
        self._ignored_bytes = 0
        self._problem: ModelmillError | None = None
        """Why the parser must stop."""
        self.stalled_since: float | None = None

    def _make_bounds(self) -> Bounds:
        return _own_bounds()

    # What happens to the connection

    def connection_made(self, transport: Any) -> None:
        super().connection_made(_Joined(transport, self))  # type: ignore[arg-type]
        self._since = self.loop.time()
        self._crowd.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        waiting = self._answered
        if waiting is not None and waiting is not self.cycle and not waiting.response_complete:
            # uvicorn tells only the last of several requests that the client has gone.
            waiting.disconnected = True
            waiting.message_event.set()
        self.pipeline.clear()
        self._held.clear()
        self._in_head = False
        self._count()
        self._crowd.leave(self)

    def data_received(self, data: bytes) -> None:
        if self._over_since is not None:
            self._ignored_bytes += len(data)
            if self._ignored_bytes > LINGER_BYTES:
                self.drop()
        elif self._held:
            self._hold(data)
        else:
            self._feed(data)

    def pause_writing(self) -> None:
        super().pause_writing()
        self.stalled_since = self.loop.time()

    def resume_writing(self) -> None:
        super().resume_writing()
        self.stalled_since = None

    # Parsing

    def _feed(self, data: bytes) -> None:
        """Parses, one piece after the other, until a request is whole and must be answered first."""
        self._unset_keepalive_if_required()
        while data:
            if self._is_answering():
                self._hold(data)
                break
            piece = data[: self._next_piece(data)]
            if self._in_body:
                self._body_bytes += len(piece)
            else:
                self._head_bytes += len(piece)
            try:
                self.parser.feed_data(piece)
            except httptools.HttpParserUpgrade as upgrade:
                # No other protocol is spoken here: the request is answered as it is (RFC 9110, section 7.8).
                piece = piece[: upgrade.args[0]] or piece
            except httptools.HttpParserError:
                self._refuse(
                    self._problem
                    or ModelmillError(ErrorCode.MALFORMED_REQUEST, "The request cannot be read as HTTP/1.1.")
                )
                return
            if not self._in_body and self._head_bytes and (problem := self._head_problem()) is not None:
                self._refuse(problem)
                return
            if len(piece) == len(data):
                break
            data = data[len(piece) :]
        if self._in_head or self._counted:
            self._count()

    def _is_answering(self) -> bool:
        """Whether a whole request has come that is not yet answered."""
        cycle = self.cycle
        return cycle is not None and not cycle.response_complete and not self._in_body and not self._in_head

    def _next_piece(self, data: bytes) -> int:
        """How much to parse at once: of heads, no more than one."""
        if self._in_body:
            return BODY_PIECE
        if self._in_head and (end := data[:3].rfind(b"\n")) >= 0:
            # Perhaps the rest of an empty line that was cut.
            return end + 1
        end = data.find(b"\r\n\r\n", 0, HEAD_PIECE)
        return HEAD_PIECE if end < 0 else end + 4

    def _head_problem(self) -> ModelmillError | None:
        bounds = self._bounds
        if self._head_bytes <= bounds.url_bytes and len(self.headers or ()) <= bounds.headers:
            return None
        if len(self.url if self._in_head else b"") > bounds.url_bytes:
            return ModelmillError(
                ErrorCode.URL_TOO_LONG, f"The address is longer than {bounds.url_bytes} bytes."
            )
        if self._head_bytes > bounds.head_bytes:
            return ModelmillError(
                ErrorCode.HEAD_TOO_LARGE, f"The head is larger than {bounds.head_bytes} bytes."
            )
        if self._in_head and len(self.headers) > bounds.headers:
            return ModelmillError(
                ErrorCode.HEAD_TOO_LARGE, f"The request has more than {bounds.headers} headers."
            )
        return None

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        self._since = self.loop.time()

    def on_headers_complete(self) -> None:
        if self._head_bytes > self._bounds.url_bytes or len(self.headers) > self._bounds.headers:
            self._problem = self._head_problem()
        if self._problem is None and len(self.pipeline) >= MAX_PIPELINED:
            self._problem = ModelmillError(
                ErrorCode.MALFORMED_REQUEST,
                "Too many requests came before the first one was answered. Wait for its answer.",
            )
        if self._problem is not None:
            raise self._problem
        self._in_head, self._in_body = False, True
        self._head_bytes = self._body_bytes = 0
        self._body_since = self._since
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        self._in_body = False

    def _should_upgrade(self) -> bool:
        return False

    # Requests that came too early

    def _hold(self, data: bytes) -> None:
        self._held += data
        if len(self._held) > HELD_BYTES:
            self.flow.pause_reading()
        if len(self._held) > MAX_HELD_BYTES or not self._count():
            self.drop()

    def _feed_held(self) -> None:
        if self._held and self._over_since is None and not self.transport.is_closing():
            data = bytes(self._held)
            self._held.clear()
            self._feed(data)

    def _count(self) -> bool:
        unparsed = len(self._held) + (self._head_bytes if self._in_head else 0)
        more, self._counted = unparsed - self._counted, unparsed
        return self._crowd.count(more)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answered = cycle
        self._crowd.is_busy(self)
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self._since = self.loop.time()
        super().on_response_complete()
        if self._answered is not None and self._answered.response_complete:
            self._crowd.waits(self)
        if self._held:
            if len(self._held) > HELD_BYTES:
                self.flow.pause_reading()
            self.loop.call_soon(self._feed_held)

    # Ends

    def check(self, now: float) -> None:
        """Ends the connection if its client is too slow."""
        current, has_sent = self._answered, self._body_bytes > 0
        if self._over_since is not None or self.transport.is_closing():
            self._over_since = self._over_since or now
            if now - self._over_since > LINGER_S:
                self.drop()
        elif current is None or current.response_complete:
            self._check_silence(now - self._since)
        elif not self._in_body or self.flow.read_paused or current.waiting_for_100_continue:
            self._body_since, self._body_bytes = now, 0
        else:
            self._check_body(current, now)
        if self.stalled_since is not None:
            if has_sent:
                self.stalled_since = now
            elif now - self.stalled_since > UNREAD_S:
                self.drop()

    def _check_silence(self, waited_s: float) -> None:
        """Checks a connection without a request that is being answered."""
        bounds = self._bounds
        if self._in_body:
            # The answer did not need the body, which goes on.
            if waited_s > bounds.body_s:
                self.drop()
        elif self._in_head and waited_s > bounds.head_s:
            message = f"The head of the request took longer than {bounds.head_s:g} s."
            self.refuse(ErrorCode.REQUEST_TIMEOUT, message)
        elif waited_s > bounds.idle_s:
            self.drop()

    def _check_body(self, current: RequestResponseCycle, now: float) -> None:
        """Checks how fast the body of a request arrives."""
        bounds, waited_s = self._bounds, now - self._body_since
        if current.response_started:
            # As in a bulk submit, whose client may produce its lines slowly.
            if not self._body_bytes and waited_s > QUIET_BODY_S:
                self.drop()
            if not self._body_bytes:
                return
        elif waited_s <= bounds.body_s:
            return
        elif self._body_bytes < waited_s * bounds.body_bytes_per_s:
            self.refuse(
                ErrorCode.REQUEST_TIMEOUT,
                f"In {bounds.body_s:g} s, less than {bounds.body_bytes_per_s} bytes of the body came per s.",
            )
        self._body_since, self._body_bytes = now, 0

    def drop(self) -> None:
        """Closes the connection at once."""
        self.transport.abort()

    def refuse(self, code: ErrorCode, message: str) -> None:
        """Answers with an error, and closes the connection."""
        self._refuse(
            ModelmillError(code, message, retry_after_s=1 if code is ErrorCode.SERVER_BUSY else None)
        )

    def _refuse(self, problem: ModelmillError) -> None:
        self._crowd.refused(problem.code)
        self.pipeline.clear()
        self._held.clear()
        current = self._answered
        is_own = current is not None and not current.response_complete and self._in_body
        if current is not None and not current.response_complete and not is_own:
            # An earlier request is being answered, and nothing may come into that answer.
            current.keep_alive = False
            self._over_since = self.loop.time() + UNREAD_S
            return
        if current is not None and is_own:
            current.disconnected = True
            current.message_event.set()
            if current.response_started:
                self.drop()
                return
        response = problem_response(problem)
        head = b"".join(b"%b: %b\r\n" % field for field in response.raw_headers)
        status = STATUS_LINE[response.status_code]
        self.transport.write(status + head + b"connection: close\r\n\r\n" + bytes(response.body))
        self._linger()

    def lingers(self) -> bool:
        """Whether the connection closes a little later, as its client has not sent all of its request."""
        if not self._in_body or self._over_since is not None or self.transport.is_closing():
            return False
        self._linger()
        return True

    def _linger(self) -> None:
        self._over_since = self.loop.time()
        self._in_head = False
        self._count()
        self._unset_keepalive_if_required()
        self.transport.write_eof()
        self.flow.resume_reading()
