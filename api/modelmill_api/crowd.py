"""All connections of one API process together: how many there may be, and which of them must go."""

from __future__ import annotations

import asyncio
import logging
import resource
from collections import Counter
from dataclasses import dataclass
from typing import Protocol

from modelmill.errors import ErrorCode
from modelmill.settings import Settings

logger = logging.getLogger(__name__)

SWEEP_S = 1.0
"""How often the times of all connections are checked. One timer for all costs a request nothing."""
UNPARSED_BYTES = 16 * 1024 * 1024
"""Bytes of unfinished heads, and of requests that came before an earlier one was answered, over all
connections."""
STALLED = 256
"""Connections whose clients may leave an answer unread for longer than ``STALLED_S``. Each holds some 128 KiB
of its answer."""
STALLED_S = 10.0
OTHER_FILES = 256
"""Files of this process that are no connections of clients: those of the store, of blobs, of uploads."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """What one connection may do, and how many there may be. See the settings of the same names."""

    head_bytes: int
    headers: int
    url_bytes: int
    connections: int
    head_s: float
    idle_s: float
    body_s: float
    body_bytes_per_s: int

    @classmethod
    def from_settings(cls, settings: Settings) -> Bounds:
        files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        connections = settings.max_connections
        if files != resource.RLIM_INFINITY:
            # Without files left, the server could not accept connections, nor close others for them.
            connections = min(connections, max(16, files - OTHER_FILES))
        return cls(
            head_bytes=settings.max_head_bytes,
            headers=settings.max_headers,
            url_bytes=settings.max_url_bytes,
            connections=connections,
            head_s=settings.head_timeout_s,
            idle_s=max(settings.head_timeout_s, settings.keep_alive_s),
            body_s=settings.body_timeout_s,
            body_bytes_per_s=settings.min_body_bytes_per_s,
        )


class Member(Protocol):
    """A connection, as the crowd sees it."""

    def check(self, now: float) -> None:
        """Ends the connection if it is too slow."""

    def drop(self) -> None:
        """Closes the connection at once."""

    def refuse(self, code: ErrorCode, message: str) -> None:
        """Answers with an error and closes the connection."""

    @property
    def stalled_since(self) -> float | None:
        """Since when the client has not read an answer, by the event loop's clock."""


class Crowd:
    """The connections of one server. Only its event loop uses it."""

    def __init__(self, bounds: Bounds, loop: asyncio.AbstractEventLoop) -> None:
        self.bounds = bounds
        self.unparsed_bytes = 0
        self._loop = loop
        self._all: set[Member] = set()
        self._waiting: dict[Member, None] = {}
        """Connections without a request that is being answered; that of the longest wait comes first."""
        self._timer: asyncio.TimerHandle | None = None
        self._refused: Counter[str] = Counter()

    def enter(self, member: Member) -> None:
        """Takes a new connection. If there are too many, another one must go, or this one is refused.

        A connection without a request goes first. So a flood of silent connections pushes out itself, and one
        that sends its request at once is answered.
        """
        self._all.add(member)
        if len(self._all) > self.bounds.connections and not self._make_room():
            self.refused(ErrorCode.SERVER_BUSY)
            self._waiting[member] = None
            member.refuse(
                ErrorCode.SERVER_BUSY, "All connections of this server are taken. Try again in a moment."
            )
            return
        self._waiting[member] = None
        if self._timer is None:
            self._timer = self._loop.call_later(SWEEP_S, self._sweep)

    def leave(self, member: Member) -> None:
        """Forgets a connection that is closed."""
        self._all.discard(member)
        self._waiting.pop(member, None)

    def is_busy(self, member: Member) -> None:
        """A request of this connection is being answered."""
        self._waiting.pop(member, None)

    def waits(self, member: Member) -> None:
        """This connection has no request."""
        if member in self._all:
            self._waiting[member] = None

    def count(self, more: int) -> bool:
        """Counts bytes that are kept and not yet parsed. Whether they may be kept."""
        self.unparsed_bytes += more
        while more > 0 and self.unparsed_bytes > UNPARSED_BYTES:
            if not self._drop_first():
                return False
        return True

    def refused(self, code: ErrorCode) -> None:
        """Notes a refusal. The log gets one line for all of a second, so that an attack does not fill it."""
        self._refused[code.value] += 1

    def _make_room(self) -> bool:
        return self._drop_first() or self._drop_stalled(at_most=1)

    def _drop_first(self) -> bool:
        if not self._waiting:
            return False
        first = next(iter(self._waiting))
        self.leave(first)
        self._refused["dropped"] += 1
        first.drop()
        return True

    def _drop_stalled(self, at_most: int) -> bool:
        before = self._loop.time() - STALLED_S
        stalled = sorted(
            (since, id(member), member)
            for member in self._all
            if (since := member.stalled_since) is not None and since < before
        )
        for _, _, member in stalled[:at_most]:
            self.leave(member)
            self._refused["dropped"] += 1
            member.drop()
        return bool(stalled)

    def _sweep(self) -> None:
        now = self._loop.time()
        for member in list(self._all):
            member.check(now)
        stalled = sum(member.stalled_since is not None for member in self._all)
        if stalled > STALLED:
            self._drop_stalled(at_most=stalled - STALLED)
        if self._refused:
            text = ", ".join(f"{count} {name}" for name, count in sorted(self._refused.items()))
            logger.warning("refused requests or closed connections: %s", text)
            self._refused.clear()
        self._timer = self._loop.call_later(SWEEP_S, self._sweep) if self._all else None
