"""What a model does not read of a text is told: each runner with texts, on its specimen."""

from __future__ import annotations

import copy
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
import pytest

from modelmill.errors import ErrorCode, ModelmillError
from modelmill.settings import Settings
from modelmill_backends.conformance import LoadedSpecimen, Specimen
from modelmill_backends.device import Device
from modelmill_tasks.item_warnings import ItemWarning, WarningCode, collecting
from tests.fixtures.specimens import all_specimens
from tests.support.exhaustive import exhaustive

FIELDS: dict[str, tuple[str | int, ...]] = {
    "text-generation": ("text",),
    "chat-completion": ("messages", -1, "content"),
    "summarization": ("text",),
    "translation": ("text",),
    "text-classification": ("text",),
    "text-embedding": ("text",),
    "sentence-similarity": ("sentences",),
    "zero-shot-classification": ("text",),
    "zero-shot-image-classification": ("classes",),
    "zero-shot-object-detection": ("classes",),
    "fill-mask": ("text",),
    "token-classification": ("text",),
    "question-answering": ("context",),
    "table-question-answering": ("query",),
    "visual-question-answering": ("question",),
    "image-to-text": ("text",),
    "image-text-embedding": ("text",),
    "multimodal-embedding": ("input", "text"),
    "text-to-image": ("prompt",),
    "text-to-speech": ("text",),
}
"""Where the text of each task is."""
LISTS = ("classes", "sentences")
READ_LATER = ("tiny-sd", "tiny-sdxl", "language-id", "conse-lite0")
CLASS_LENGTH, SPOKEN_LENGTH = 500, 2_000
FIGURES = re.compile(r"(?:cut to|read the first) ([\d,]+) .*(?:it has|of the table's) ([\d,]+)")
CUT = {WarningCode.TEXT_CUT, WarningCode.ROWS_LEFT_OUT}
SPECIMENS = (
    *("tiny-llama-chat", "tiny-llava", "tiny-t5", "tiny-vilt", "tiny-text-classifier", "tiny-nli"),
    *("tiny-mlm", "tiny-qa", "tiny-tapas", "tiny-comparer", "tiny-clip-transformers"),
)
"""One of each kind. `make test-full` takes all."""


def with_text(specimen: LoadedSpecimen, text: str) -> dict[str, Any]:
    """An item of the specimen with this text."""
    task = specimen.specimen.task
    item = copy.deepcopy(dict(specimen.inputs[0]))
    if task == "multimodal-embedding":
        item["input"] = {}
    *path, last = FIELDS[task]
    place: Any = item
    for key in path:
        place = place[key]
    place[last] = [text] if last in LISTS else text
    return item


def fitting(specimen: LoadedSpecimen, text: str) -> str:
    """The text in the form that the task takes."""
    if FIELDS[specimen.specimen.task][0] == "classes":
        text = text[-CLASS_LENGTH:]
    if specimen.specimen.task == "text-to-speech":
        text = text[-SPOKEN_LENGTH:]
    if specimen.specimen.task == "fill-mask":
        text = f"{specimen.runner.weights.tokenizer.mask_token} {text}"
    return text


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(one, id=f"{one.task}-{one.name}")
        if one.name in SPECIMENS
        else exhaustive(one, id=f"{one.task}-{one.name}")
        for one in all_specimens()
        if one.task in FIELDS
    ],
)
def specimen(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, settings: Settings
) -> Iterator[LoadedSpecimen]:
    one: Specimen = request.param
    loaded = LoadedSpecimen(one, tmp_path_factory.mktemp(one.name), settings, Device("cpu", 1))
    yield loaded
    loaded.close()


def outcome(specimen: LoadedSpecimen, text: str) -> tuple[Any, list[ItemWarning]]:
    """The prepared item, or the error that refuses it, and the warnings."""
    found: list[ItemWarning] = []
    item = specimen.task.input.model_validate(with_text(specimen, fitting(specimen, text)))
    try:
        with collecting(found):
            return specimen.runner.preprocess(item), found
    except ModelmillError as error:
        return error, found


def test_a_text_that_is_too_long_is_refused_or_cut_with_a_word_or_read_to_its_end(
    specimen: LoadedSpecimen,
) -> None:
    long = "The old mill in the wood, and the wheel. " * 700
    prepared, found = outcome(specimen, long + "red")

    if isinstance(prepared, ModelmillError):
        assert prepared.code is ErrorCode.INVALID_INPUT
        refuses_any = "takes no beginning" in prepared.message
        assert refuses_any or any(letter.isdigit() for letter in prepared.message), prepared.message
        return
    if cut := [one.message for one in found if one.code in CUT]:
        figures = FIGURES.search(cut[0])
        assert figures
        kept, total = (int(figure.replace(",", "").rstrip(".")) for figure in figures.groups())
        assert 0 < kept < total
        return
    if specimen.specimen.name in READ_LATER:
        # Its tokens are made in ``forward``.
        return
    other, _ = outcome(specimen, long + "blue")
    assert ids_in(prepared.data) != ids_in(other.data)


def test_a_short_text_has_no_warning(specimen: LoadedSpecimen) -> None:
    _, found = outcome(specimen, "the mill")

    assert found == []


def test_the_spelling_of_a_special_token_is_text(specimen: LoadedSpecimen) -> None:
    if specimen.specimen.name in READ_LATER:
        pytest.skip("prepares no tokens")
    special = specials(specimen)
    harmless, _ = outcome(specimen, "ab")
    if isinstance(harmless, ModelmillError):
        pytest.skip("takes no text")
    expected = Counter(number for number in ids_in(harmless.data) if number in special)

    for spelled in special.values():
        prepared, _ = outcome(specimen, f"a{spelled}b {spelled} {spelled}")
        if isinstance(prepared, ModelmillError):
            assert prepared.fields[0].message.startswith(("holds 4 gaps", "has ")), prepared.message
            continue
        assert Counter(one for one in ids_in(prepared.data) if one in special) == expected, spelled


def specials(specimen: LoadedSpecimen) -> dict[int, str]:
    """The special tokens that no text of a caller may hold, by their ids."""
    weights = specimen.runner.weights
    for name in ("encoder", "loaded", "runner", "weights"):
        weights = getattr(weights, name, weights)
    tokenizer = weights.tokenizer
    if hasattr(tokenizer, "get_added_tokens_decoder"):
        added = tokenizer.get_added_tokens_decoder()
    else:
        added = tokenizer.added_tokens_decoder
    others = {"[UNK]", "<unk>", *(getattr(tokenizer, name, None) for name in ("mask_token", "pad_token"))}
    return {
        number: token.content
        for number, token in added.items()
        if token.special and token.content not in others and "\ufdd0" not in token.content
    }


def ids_in(data: Any) -> list[int]:
    """All token ids in what a runner has prepared."""
    if isinstance(data, dict) or hasattr(data, "keys"):
        return [number for name in data if name in ("input_ids", "request") for number in ids_in(data[name])]
    if is_dataclass(data):
        kept = [field.name for field in fields(data) if field.name in ("ids", "prompt", "request", "data")]
        return [number for name in kept for number in ids_in(getattr(data, name))]
    if isinstance(data, np.ndarray):
        return [int(number) for number in data.ravel()] if data.dtype.kind == "i" else []
    if isinstance(data, list | tuple):
        return [number for part in data for number in ids_in(part)]
    return [int(data)] if isinstance(data, int) else []
