from __future__ import annotations

import json

import pytest

from modelmill.errors import ERRORS, ErrorCode, FieldError, MediaError, ModelmillError


def test_every_code_has_its_row_in_the_table() -> None:
    assert set(ERRORS) == set(ErrorCode)


@pytest.mark.parametrize("code", ErrorCode)
def test_a_row_is_an_error_status_and_a_title(code: ErrorCode) -> None:
    spec = ERRORS[code]

    assert 400 <= spec.status < 600
    assert spec.title
    assert not spec.title.endswith(".")


@pytest.mark.parametrize("code", ErrorCode)
def test_what_may_succeed_later_is_a_state_that_passes_or_an_error_of_the_server(code: ErrorCode) -> None:
    if ERRORS[code].retryable:
        assert ERRORS[code].status in (408, 409, 429) or ERRORS[code].status >= 500


@pytest.mark.parametrize("code", ErrorCode)
def test_as_data_is_json_of_text_and_booleans(code: ErrorCode) -> None:
    error = ModelmillError(
        code, "A sentence, with “quotes”.", fields=[FieldError("a.b", "is wrong")], retry_after_s=1
    )

    data = json.loads(json.dumps(error.as_data()))

    assert data == {
        "code": code.value,
        "message": "A sentence, with “quotes”.",
        "retryable": ERRORS[code].retryable,
    }


def test_an_error_shows_its_sentence_and_keeps_its_fields() -> None:
    fields = [FieldError("image", "is empty")]

    error = MediaError(ErrorCode.INVALID_MEDIA, "The image is empty.", fields=fields)
    fields.clear()

    assert isinstance(error, ModelmillError)
    assert str(error) == error.message == "The image is empty."
    assert error.spec is ERRORS[ErrorCode.INVALID_MEDIA]
    assert error.fields == (FieldError("image", "is empty"),)
    assert error.retry_after_s is None
