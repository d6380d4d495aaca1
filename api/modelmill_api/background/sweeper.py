"""The API's sweeper: deletes expired files, and blobs that are no longer needed."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from modelmill.errors import ModelmillError
from modelmill.store.files import AT_MOST, FileStore

logger = logging.getLogger(__name__)

BUSY_S, IDLE_S = 5.0, 30.0
"""Pauses after a sweep that found something, and after one that did not."""


async def sweep_until(stopping: asyncio.Event, files: FileStore, *, has_blobs: bool) -> None:
    """Sweeps again and again until ``stopping``. Every API process does so, and deletes what it finds."""
    wait_s, told = BUSY_S, False
    while not stopping.is_set():
        with suppress(TimeoutError):
            await asyncio.wait_for(stopping.wait(), wait_s)
            return
        try:
            names = await files.sweep()
            if names and not has_blobs and not told:
                logger.error(
                    "payloads in a blob store are not deleted, because MODELMILL_BLOB_URL is not set"
                )
                told = True
            if await files.may_sweep_orphans():
                count = await files.sweep_orphans()
                logger.log(
                    logging.INFO if count else logging.DEBUG, "deleted %d blobs that no record names", count
                )
        except ModelmillError as error:
            logger.warning("sweeping failed: %s", error.message)
            wait_s = IDLE_S
        except Exception:
            logger.exception("sweeping failed")
            wait_s = IDLE_S
        else:
            found = has_blobs and bool(names)
            wait_s = 0.1 if found and len(names) == AT_MOST else BUSY_S if found else IDLE_S
