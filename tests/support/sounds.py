"""Decodes a recording as the runners do."""

from __future__ import annotations

from typing import Any

import pytest

from modelmill.errors import MediaError
from modelmill_backends.shared.audio import open_audio
from modelmill_tasks.item_warnings import ItemWarning, WarningCode, collecting
from tests.fixtures.sounds import RATE


def opened(data: bytes) -> tuple[Any, list[WarningCode]]:
    """The samples, and the codes of the warnings."""
    found: list[ItemWarning] = []
    with collecting(found):
        samples = open_audio(data, RATE)
    return samples, [each.code for each in found]


def refusal(data: bytes) -> MediaError:
    """The error that the file gives."""
    with pytest.raises(MediaError) as raised:
        open_audio(data, RATE)
    return raised.value
