"""Errors as problems: the page of the API names each."""

from __future__ import annotations

from modelmill.errors import ERRORS
from tests.conftest import REPOSITORY


def test_the_page_of_the_api_lists_every_code() -> None:
    text = (REPOSITORY / "docs" / "http.md").read_text()
    for code, spec in ERRORS.items():
        row = f"| `{code.value}` | {spec.status} | {spec.title} | {'yes' if spec.retryable else ''} |"
        assert row in text, row
