"""Acts on a stop signal before the server does."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any


@contextmanager
def on_stop_signal(act: Callable[[], None]) -> Iterator[None]:
    """Runs ``act`` in the event loop when the process receives SIGTERM or SIGINT.

    A server like uvicorn first waits for open requests and then tells the application. This is too late for
    requests that wait themselves.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    loop = asyncio.get_running_loop()
    previous: dict[int, Callable[[int, FrameType | None], Any]] = {}

    def handle(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(act)
        previous[number](number, frame)

    for number in (signal.SIGTERM, signal.SIGINT):
        handler = signal.getsignal(number)
        # If no handler is set, the signal ends the process. That stays as it is.
        if callable(handler):
            previous[number] = handler
            signal.signal(number, handle)
    try:
        yield
    finally:
        for caught, before in previous.items():
            signal.signal(caught, before)
