"""Spreads the test files over the processes of pytest-xdist: those that take long come first."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

SHARE_A_SYSTEM = ("e2e/test_docs.py", "e2e/test_tasks.py", "e2e/test_up.py", "e2e/test_files.py")
"""One process runs all of these, so that the `modelmill up` that they ask is started once."""

LONGEST_FIRST = (
    *SHARE_A_SYSTEM,
    "backends/test_conformance.py",
    "worker/test_node.py",
    "e2e/test_cli_models.py",
    "e2e/test_starting.py",
    "e2e/test_wheel.py",
    "e2e/test_add_a_task.py",
    "backends/test_ocr.py",
    "chaos/test_poison.py",
    "chaos/test_faults.py",
    "chaos/test_soak.py",
    "backends/test_audio_pocketsphinx.py",
    "backends/test_text_embedding.py",
    "e2e/test_plugin.py",
    "worker/test_placement.py",
    "worker/test_progress.py",
    "worker/test_model_cache.py",
    "benchmarks/test_sections.py",
    "e2e/test_demo.py",
    "e2e/test_keys.py",
    "backends/test_generation_real.py",
    "modelmill/store/test_state_machine.py",
    "modelmill/store/test_store.py",
    "api/test_waiting.py",
    "api/test_schema_conformance.py",
    "backends/test_export.py",
    "modelmill/client/backfill/test_command.py",
)
"""Files of more than ten seconds. The short ones fill what is left at the end."""


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests of each file stay together."""
    ranks = {f"tests/{name}": rank for rank, name in enumerate(LONGEST_FIRST)}
    return sorted(items, key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(ranks)))


class LongestFirst(LoadFileScheduling):
    """Gives the next file to the process that is free first, in the order of the collection."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        # By default, files with many tests come first, and the long ones with few tests last.
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0].removeprefix("tests/")
        return "the shared system" if file in SHARE_A_SYSTEM else file
