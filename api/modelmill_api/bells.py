"""Bells and orders to workers, sent from the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from modelmill.broker import Bells, make_celery
from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill.store import ApiStore

logger = logging.getLogger(__name__)

ORDER_TIMEOUT_S, ORDER_RETRY_S = 5.0, 2.0
"""How long sending an order may take, and when the caller may try again if it took longer."""


class AsyncBells:
    """``Bells`` for the event loop that makes it.

    If a bell cannot be sent, this releases it in the store: another process may then ring for that model.
    """

    def __init__(self, settings: Settings, store: ApiStore) -> None:
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._releases: set[asyncio.Task[None]] = set()
        self._bells = Bells(make_celery(settings), self._release_from_thread)

    def ring(self, model: str) -> None:
        """Wakes a worker for ``model``."""
        self._bells.ring(model)

    async def order(self, name: str, model: str, nodes: Sequence[str]) -> None:
        """Sends ``LOAD`` or ``UNLOAD`` to nodes. A drain that lingers on one of them makes room for it.

        Raises:
            ModelmillError: ``store_unavailable``: the order did not reach all of them.
        """
        sent: dict[str, asyncio.Future[None]] = {}
        for node in nodes:
            await self._store.send_away(node)
            sent[node] = asyncio.wrap_future(self._bells.order(name, model, node))
        await asyncio.wait(sent.values(), timeout=ORDER_TIMEOUT_S)
        # An order that is late is taken back, since the caller hears that it was not sent.
        missed = [node for node, each in sent.items() if each.cancel() or each.exception()]
        if missed:
            raise ModelmillError(
                ErrorCode.STORE_UNAVAILABLE,
                f"The order could not be sent to {', '.join(missed)}. Try again shortly.",
                retry_after_s=ORDER_RETRY_S,
            )

    async def close(self) -> None:
        """Sends what is pending, for two seconds at most, and finishes the releases."""
        await asyncio.to_thread(self._bells.close)
        await asyncio.gather(*self._releases, return_exceptions=True)

    def _release_from_thread(self, model: str) -> None:
        # The thread that sends bells calls this, perhaps after the loop has ended. The store belongs to the
        # loop, and so does a coroutine: if it were made here, it could be left over.
        self._loop.call_soon_threadsafe(self._release, model)

    def _release(self, model: str) -> None:
        task = asyncio.create_task(self._store.release_bell(model), name=model)
        self._releases.add(task)
        task.add_done_callback(self._note_release)

    def _note_release(self, task: asyncio.Task[None]) -> None:
        self._releases.discard(task)
        if not task.cancelled() and (error := task.exception()):
            logger.warning("no other process can ring for model %s for a while: %s", task.get_name(), error)
