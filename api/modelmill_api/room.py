"""Room for request bodies: how many bytes of them one API process holds at the same time."""

from __future__ import annotations

import asyncio
from collections import deque
from types import TracebackType

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings

SMALL_BYTES = 256 * 1024
"""Bodies up to this size also get the last quarter of the room, so that they need not wait for large ones."""
WAIT_S = 10.0
"""How long a body waits for room."""
MAX_WAITING = 64
"""Bodies that may wait. Each has some hundred KiB in the buffers of its connection."""


class BodyRoom:
    """The bytes of all bodies that this process holds. Only its event loop uses it."""

    def __init__(self, settings: Settings) -> None:
        # A body of the largest size must fit.
        self._total = max(settings.max_bodies_bytes, 2 * settings.max_body_bytes)
        self._for_large = self._total * 3 // 4
        self._taken = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def taken_bytes(self) -> int:
        """Bytes that are taken now."""
        return self._taken

    def takes_small(self, size: int) -> bool:
        """Takes room for a small body, if there is any."""
        if self._taken + size > self._total:
            return False
        self._taken += size
        return True

    async def take(self, size: int, is_small: bool) -> None:
        """Takes room, and waits for it in the order of coming.

        Raises:
            ModelmillError: ``server_busy``.
        """
        if self._fits(size, is_small) and (is_small or not self._waiting):
            self._taken += size
            return
        if is_small or len(self._waiting) >= MAX_WAITING:
            raise _busy()
        entry = (size, asyncio.get_running_loop().create_future())
        self._waiting.append(entry)
        try:
            async with asyncio.timeout(WAIT_S):
                await asyncio.shield(entry[1])
        except BaseException as error:
            if entry[1].done():
                self.leave(size)
            else:
                self._waiting.remove(entry)
                self._admit()
            if isinstance(error, TimeoutError):
                raise _busy() from None
            raise

    def leave(self, size: int) -> None:
        """Gives room back."""
        self._taken -= size
        if self._waiting:
            self._admit()

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0][0], is_small=False):
            size, turn = self._waiting.popleft()
            self._taken += size
            turn.set_result(None)

    def _fits(self, size: int, is_small: bool) -> bool:
        return self._taken + size <= (self._total if is_small else self._for_large)


class Place:
    """The room that one request has. Leave it as soon as the body is no longer needed."""

    def __init__(self, room: BodyRoom) -> None:
        self._room = room
        self._size = 0

    def takes(self, size: int) -> bool:
        """Takes room for a body that is small, as nearly all are; whether it did."""
        if self._size or size > SMALL_BYTES or not self._room.takes_small(size):
            return False
        self._size = size
        return True

    async def resize(self, size: int) -> None:
        """Takes room for ``size`` bytes in all, or gives back the rest.

        Raises:
            ModelmillError: ``server_busy``.
        """
        if size > self._size:
            more = size - self._size
            await self._room.take(more, is_small=size <= SMALL_BYTES)
            # Meanwhile another task may have given some back.
            self._size += more
        else:
            self.shrink(size)

    def shrink(self, size: int) -> None:
        """Gives back what is over ``size``, if anything is."""
        if size < self._size:
            over, self._size = self._size - size, size
            self._room.leave(over)

    def leave(self) -> None:
        """Gives all room back. You may call it again."""
        self.shrink(0)

    def __enter__(self) -> Place:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


def _busy() -> ModelmillError:
    return ModelmillError(
        ErrorCode.SERVER_BUSY,
        "This server holds as many request bodies as it may. Try again in a moment.",
        retry_after_s=2,
        headers={"Connection": "close"},
    )
