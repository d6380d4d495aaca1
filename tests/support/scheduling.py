"""Gives the test files to the processes of pytest-xdist, the long ones first."""

from __future__ import annotations

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

SHARE_A_SYSTEM = ("e2e/test_docs.py", "e2e/test_tasks.py", "e2e/test_up.py", "e2e/test_files.py")
"""One process runs all of these, so that `modelmill up` starts only once for them."""

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
"""Files that take more than ten seconds. At the end, the short ones keep both processes busy."""


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """The tests in the order of their files in ``LONGEST_FIRST``, then all others."""
    ranks = {f"tests/{name}": rank for rank, name in enumerate(LONGEST_FIRST)}
    return sorted(items, key=lambda item: ranks.get(item.nodeid.partition("::")[0], len(ranks)))


class LongestFirst(LoadFileScheduling):  # type: ignore[misc]
    """Gives the next file, in the order of the collection, to the first process that is free."""

    def __init__(self, config: pytest.Config, log: Producer | None = None) -> None:
        super().__init__(config, log)
        # By default, files with many tests come first, and files with few long tests last.
        config.option.loadscopereorder = False

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0].removeprefix("tests/")
        return "the shared system" if file in SHARE_A_SYSTEM else file
