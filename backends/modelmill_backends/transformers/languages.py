"""Languages of translation models: how each kind of model names them, and how it is told the languages."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

from modelmill.errors import invalid_field
from modelmill_backends.transformers.generation import Generative

SOURCE, TARGET = "config.source_language", "config.target_language"

NAMES = {"en": "English", "de": "German", "fr": "French", "ro": "Romanian"}
"""The languages that T5 was trained to translate (Raffel et al. 2020)."""

CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]{1,3}")
"""A language among the special tokens of NLLB (``eng_Latn``) and mBART (``en_XX``)."""
T5_PARAMS = re.compile(r"translation_(\w{1,40})_to_(\w{1,40})")
T5_PREFIX = re.compile(r"translate (\w+) to (\w+):")
MARIAN_CODE = re.compile(r">>(.+)<<")

LISTED = 60
"""An error lists at most so many languages."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a model is told the languages of one text.

    Attributes:
        prefix: Text before the caller's text.
        source_code: Value of the tokenizer's ``src_lang``.
        first_token: The token that the translation begins with.
        params: The model's parameters for this pair of languages.
    """

    prefix: str = ""
    source_code: str | None = None
    first_token: int | None = None
    params: Mapping[str, Any] = field(default_factory=dict)


class Languages(ABC):
    """The languages of a model."""

    @abstractmethod
    def way(self, source: str | None, target: str | None) -> Way:
        """How to tell the model the two languages; None means the model's default.

        Raises:
            ModelmillError: ``invalid_input``: the model does not know a language. If possible, the message
                lists the known ones.
        """


def languages_of(model_type: str, model: Generative, task_params: Mapping[str, Any]) -> Languages:
    """The languages of a loaded model."""
    tokenizer = model.tokenizer
    if model_type == "t5":
        return PrefixLanguages(task_params)
    codes = getattr(tokenizer, "lang_code_to_id", None) or {
        token: number for token, number in model.special.items() if CODE.fullmatch(token)
    }
    if codes and hasattr(tokenizer, "src_lang"):
        return CodedLanguages(codes, tokenizer.src_lang, getattr(tokenizer, "tgt_lang", None))
    marked = [match[1] for match in map(MARIAN_CODE.fullmatch, _marks(tokenizer)) if match]
    if marked:
        return MarkedLanguages(marked, getattr(tokenizer, "source_lang", None))
    return OnePair(getattr(tokenizer, "source_lang", None), getattr(tokenizer, "target_lang", None))


class PrefixLanguages(Languages):
    """T5: a sentence before the text names the task and the languages."""

    def __init__(self, task_params: Mapping[str, Any]) -> None:
        self._pairs: dict[tuple[str, str], Mapping[str, Any]] = {}
        self._names = dict(NAMES)
        for key, params in task_params.items():
            if match := T5_PARAMS.fullmatch(key):
                self._pairs[match[1], match[2]] = params
                named = T5_PREFIX.match(params.get("prefix", ""))
                self._names.update(zip(match.groups(), named.groups(), strict=True) if named else ())

    def way(self, source: str | None, target: str | None) -> Way:
        if not self._pairs:
            return self._any(source, target)
        code_in, code_out = self._code(source), self._code(target)
        found = [pair for pair in self._pairs if code_in in (None, pair[0]) and code_out in (None, pair[1])]
        known = ", ".join(f"{one} to {other}" for one, other in self._pairs)
        if not found:
            unknown = source is not None and all(code_in != pair[0] for pair in self._pairs)
            raise invalid_field(SOURCE if unknown else TARGET, f"the model translates only {known}")
        if len(found) > 1:
            raise invalid_field(TARGET, f"choose one; the model translates {known}")
        params = dict(self._pairs[found[0]])
        one, other = (self._names.get(code, code) for code in found[0])
        return Way(prefix=params.get("prefix") or f"translate {one} to {other}: ", params=params)

    def _any(self, source: str | None, target: str | None) -> Way:
        # A configuration without tasks, as in Flan-T5, does not say which languages the model knows.
        if source is None or target is None:
            raise invalid_field(TARGET if target is None else SOURCE, "set it; the model has no default")
        one, other = (self._names.get(name.lower(), name.capitalize()) for name in (source, target))
        return Way(prefix=f"translate {one} to {other}: ")

    def _code(self, name: str | None) -> str | None:
        if name is None:
            return None
        by_name = {full.lower(): code for code, full in self._names.items()}
        return by_name.get(name.lower(), name.lower())


class CodedLanguages(Languages):
    """NLLB, mBART, M2M-100: a token before the text and one before the translation name the languages."""

    def __init__(self, codes: Mapping[str, int], source: str, target: str | None) -> None:
        self._codes = dict(codes)
        self._source = source
        self._target = target

    def way(self, source: str | None, target: str | None) -> Way:
        target = target or self._target
        if target is None:
            raise invalid_field(TARGET, f"set it; the model knows {_listed(self._codes)}")
        source = source or self._source
        for field_name, code in ((SOURCE, source), (TARGET, target)):
            if code not in self._codes:
                near = get_close_matches(code, self._codes, n=3, cutoff=0.4)
                hint = f"similar codes: {', '.join(near)}; it" if near else "it"
                raise invalid_field(
                    field_name, f"the model has no such code; {hint} knows {_listed(self._codes)}"
                )
        return Way(source_code=source, first_token=self._codes[target])


class MarkedLanguages(Languages):
    """Marian with several target languages: a mark before the text names one, such as ``>>fra<<``."""

    def __init__(self, targets: Iterable[str], source: str | None) -> None:
        self._targets = sorted(targets)
        self._pair = OnePair(source, None)

    def way(self, source: str | None, target: str | None) -> Way:
        if source is not None:
            self._pair.way(source, None)
        if target not in self._targets:
            said = "set it" if target is None else "the model has no such code"
            raise invalid_field(TARGET, f"{said}; it knows {_listed(self._targets)}")
        return Way(prefix=f">>{target}<< ")


class OnePair(Languages):
    """A model that translates from one language into one other language."""

    def __init__(self, source: str | None, target: str | None) -> None:
        self._source = source
        self._target = target

    def way(self, source: str | None, target: str | None) -> Way:
        for field_name, asked, own in ((SOURCE, source, self._source), (TARGET, target, self._target)):
            if asked is None or (own is not None and asked.lower() == own.lower()):
                continue
            if own is None:
                raise invalid_field(
                    field_name, "the model knows only one language here and does not name it; leave it out"
                )
            raise invalid_field(field_name, f"the model knows only {own}")
        return Way()


def _marks(tokenizer: Any) -> list[str]:
    return list(getattr(tokenizer, "supported_language_codes", None) or [])


def _listed(codes: Iterable[str]) -> str:
    found = sorted(codes)
    more = f" and {len(found) - LISTED} others" if len(found) > LISTED else ""
    return ", ".join(found[:LISTED]) + more
