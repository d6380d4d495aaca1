"""Backfills: many rows through one model, from files to files, with any number of interruptions.

``client.backfill(…)`` and ``modelmill backfill`` come here. The parts: ``options`` says how a run is done,
``sources`` reads rows, ``mapping`` turns them into requests, ``engine`` keeps a window of them in flight,
``bulk_api`` talks to the server, and ``journal`` writes results and checkpoints.
"""

from modelmill.client.backfill.options import BackfillOptions
from modelmill.client.backfill.run import Input, backfill, backfill_async
from modelmill.client.backfill.stats import Stats, Summary
from modelmill.formats.encodings import InputError

__all__ = ["BackfillOptions", "Input", "InputError", "Stats", "Summary", "backfill", "backfill_async"]
