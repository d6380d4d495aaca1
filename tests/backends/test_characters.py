"""A text that ends between the bytes of a character has no U+FFFD at its end."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from modelmill_backends.progress import ProgressSink
from modelmill_backends.transformers.characters import Characters
from modelmill_backends.transformers.decoding import DecodingSettings
from modelmill_backends.transformers.stopping import Row, Watch, continuation
from tests.fixtures.tiny.tokenizers import bytes_of_gpt2, old_sentencepiece, sentencepiece

SPECIAL = ("<|end|>", "<|start|>")
KINDS: dict[str, Callable[..., Any]] = {
    "byte-level": bytes_of_gpt2,
    "bytes of SentencePiece": sentencepiece,
    "bytes of the old SentencePiece": partial(old_sentencepiece, added=()),
}
TEXTS = (
    "ok 👍",
    "Grüße",
    "東京は大きい",
    "👨‍👩‍👧‍👦 and 👍🏽👍🏽",
    "it is \ufffd",
    "\ufffd\ufffd",
    "a\ufffd👍",
)


@pytest.fixture(params=KINDS.values(), ids=list(KINDS))
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param(SPECIAL)


def ids_of(tokenizer: Any, text: str) -> list[int]:
    found: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return found


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_that_is_cut_anywhere_is_a_beginning_of_the_whole(tokenizer: Any, text: str) -> None:
    characters = Characters(tokenizer)
    ids = ids_of(tokenizer, text)

    found = [characters.decode(ids[:count], whole=True) for count in range(len(ids) + 1)]

    assert found[-1] == text
    assert all(text.startswith(one) for one in found)
    # Each character is there as soon as its last byte is.
    assert {one.rstrip() for one in found} >= {text[:count].rstrip() for count in range(1, len(text) + 1)}
    assert [len(one) for one in found] == sorted(len(one) for one in found)


def test_the_end_token_after_an_incomplete_character_changes_nothing(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "ok 👍")

    assert Characters(tokenizer).decode([*ids[:-1], tokenizer.eos_token_id], whole=True) == "ok "


def test_a_replacement_character_in_the_middle_stays(tokenizer: Any) -> None:
    ids = ids_of(tokenizer, "a👍")

    broken = Characters(tokenizer).decode([*ids[:-1], *ids_of(tokenizer, "b")], whole=True)

    assert broken.startswith("a\ufffd")
    assert broken.endswith("b")


def test_a_context_that_begins_inside_of_a_character_spoils_nothing(tokenizer: Any) -> None:
    characters = Characters(tokenizer)
    prompt, answer = ids_of(tokenizer, "x👍👍"), ids_of(tokenizer, "👍🎉")
    if len(answer) > 8:
        # Without the space that stands before a text.
        answer = [one for one in answer if tokenizer.convert_ids_to_tokens(one) != "▁"]

    for start in range(len(prompt)):
        assert continuation(partial(characters.decode, whole=True), prompt[start:], answer) == "👍🎉"


def test_a_stop_string_is_found_among_single_bytes(tokenizer: Any) -> None:
    import torch

    settings = DecodingSettings(max_new_tokens=500, stop=("。",))
    row = Row(0, settings)
    watch = Watch([row], (), Characters(tokenizer).decode, ProgressSink(), [False])
    ids = ids_of(tokenizer, "東京は大きい。京都は古い。")

    steps = 0
    for token in ids:
        steps += 1
        if bool(watch(torch.tensor([[token]]), None)[0]):
            break

    assert Characters(tokenizer).decode(row.tokens).strip() == "東京は大きい。"
    assert steps < len(ids)
