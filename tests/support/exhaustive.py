"""Marks cases that `make test` leaves to `make test-full`."""

from __future__ import annotations

from typing import Any

import pytest


def exhaustive(*values: Any, id: str | None = None) -> Any:
    """One more case of a promise that another case of the same test proves."""
    return pytest.param(*values, marks=pytest.mark.exhaustive, id=id)
