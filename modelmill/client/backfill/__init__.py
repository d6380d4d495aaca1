"""Backfills: many rows through one model, from files to files, through any interruption.

``client.backfill(…)`` and ``modelmill backfill`` come here. The parts: ``sources`` reads rows, ``mapping``
makes requests of them, ``engine`` keeps a window of them in flight, ``api`` speaks to the server, and
``journal`` writes what may not be lost.
"""

from modelmill.client.backfill.run import How, Input, backfill, backfill_async
from modelmill.client.backfill.stats import Stats, Summary

__all__ = ["How", "Input", "Stats", "Summary", "backfill", "backfill_async"]
