"""The API's reaper: enforces deadlines and rings bells, even if no worker lives."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from modelmill.errors import ModelmillError
from modelmill_api.state import ApiState

logger = logging.getLogger(__name__)


async def reap_until(stopping: asyncio.Event, state: ApiState) -> None:
    """Reaps every ``reap_s`` until ``stopping``. Workers do the same."""
    while not stopping.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), state.settings.reap_s)
            return
        try:
            reaped = await state.store.reap()
        except ModelmillError as error:
            logger.warning("reaping failed: %s", error.message)
            continue
        except Exception:
            logger.exception("reaping failed")
            continue
        for model in reaped.bells:
            state.bells.ring(model)
