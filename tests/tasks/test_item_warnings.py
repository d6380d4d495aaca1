"""Warnings about what an item loses: how they are collected, and the page that lists the codes."""

from __future__ import annotations

import re
from concurrent.futures import ThreadPoolExecutor

from modelmill.plugin import WarningCode, warn
from modelmill_tasks.item_warnings import ItemWarning, collecting
from tests.support.paths import REPOSITORY


def test_warnings_of_a_block_are_collected_in_order_and_equal_ones_once() -> None:
    found: list[ItemWarning] = []

    with collecting(found):
        warn(WarningCode.TEXT_CUT, "The text was cut to 4 tokens.")
        warn(WarningCode.ROWS_LEFT_OUT, "2 of 9 rows were left out.")
        warn(WarningCode.TEXT_CUT, "The text was cut to 4 tokens.")
    warn(WarningCode.SOUND_CUT, "outside of a block, nothing happens")

    assert found == [
        ItemWarning(WarningCode.TEXT_CUT, "The text was cut to 4 tokens."),
        ItemWarning(WarningCode.ROWS_LEFT_OUT, "2 of 9 rows were left out."),
    ]


def test_items_that_are_prepared_at_once_get_their_own_warnings() -> None:
    def prepare(number: int) -> list[ItemWarning]:
        found: list[ItemWarning] = []
        with collecting(found):
            warn(WarningCode.TEXT_CUT, f"text {number}")
        return found

    with ThreadPoolExecutor(4) as pool:
        each = list(pool.map(prepare, range(50)))

    assert [[warning.message for warning in found] for found in each] == [[f"text {n}"] for n in range(50)]


def test_the_page_lists_every_code() -> None:
    page = (REPOSITORY / "docs" / "warnings.md").read_text()

    assert re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE) == [code.value for code in WarningCode]
