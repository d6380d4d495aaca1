"""Runners for measuring."""

from __future__ import annotations

import time
from collections.abc import Sequence

from modelmill_backends.contract import Prepared
from modelmill_backends.noop.zero_shot_image_classification import NoopRunner
from modelmill_tasks.zero_shot_image_classification import Input


class SleepRunner(NoopRunner):
    """Sleeps 50 ms a batch."""

    name = "sleep"

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[int]:
        time.sleep(0.05)
        return super().forward(batch)
