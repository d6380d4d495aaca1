"""Errors as problems: the page of the API names each, and they say which field is wrong."""

from __future__ import annotations

import httpx
import pytest

from modelmill.errors import ERRORS
from tests.support.paths import REPOSITORY


def test_the_page_of_the_api_lists_every_code() -> None:
    text = (REPOSITORY / "docs" / "http.md").read_text()
    for code, spec in ERRORS.items():
        row = f"| `{code.value}` | {spec.status} | {spec.title} | {'yes' if spec.retryable else ''} |"
        assert row in text, row


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-1e999"])
def test_metadata_that_could_not_be_given_back_is_refused(api: httpx.Client, number: str) -> None:
    line = f'{{"text": "x", "metadata": {{"score": {number}}}}}'.encode()
    path = "/api/tasks/text-embedding/minilm/jobs"

    alone = api.post(path, content=line)
    in_bulk = api.post(path + ":bulk", content=line, headers={"Content-Type": "application/x-ndjson"})

    assert alone.status_code == 422
    assert [problem["field"] for problem in alone.json()["errors"]] == ["metadata"]
    error = in_bulk.json()["error"]
    assert (error["code"], error["errors"][0]["field"]) == ("invalid_input", "metadata")
