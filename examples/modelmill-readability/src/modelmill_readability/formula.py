"""Flesch's reading ease: short sentences of short words are easy."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Language = Literal["en", "de"]

CONSTANTS: dict[Language, tuple[float, float, float]] = {
    "en": (206.835, 1.015, 84.6),
    "de": (180.0, 1.0, 58.5),
}
"""R. Flesch, A new readability yardstick, 1948; T. Amstad, Wie verständlich sind unsere Zeitungen?, 1978."""

WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
SILENT_E = re.compile(r"[^aeiouy]e$(?<![^aeiouy]le)")
"""The e of "mile" is silent, the e of "table" is not."""
SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
VOWELS: dict[Language, re.Pattern[str]] = {
    "en": re.compile(r"[aeiouy]+"),
    "de": re.compile(r"aa|ee|oo|ie|ei|ai|au|äu|eu|[aeiouyäöü]"),
}


@dataclass(frozen=True, slots=True)
class Counts:
    """The three numbers that the formula needs."""

    words: int
    sentences: int
    syllables: int


def split(text: str) -> list[str]:
    """The sentences of a text; those without a word are left out."""
    return [part for part in SENTENCE_END.split(text.strip()) if WORD.search(part)]


def count(sentences: list[str], language: Language) -> Counts:
    """Words, sentences and syllables. Syllables are groups of vowels, as usual for this formula."""
    words = [word.lower() for sentence in sentences for word in WORD.findall(sentence)]
    return Counts(len(words), len(sentences), sum(_syllables(word, language) for word in words))


def reading_ease(counts: Counts, language: Language) -> float:
    """About 0 (very difficult) to 100 (very easy); both ends are open."""
    base, by_sentence, by_word = CONSTANTS[language]
    return base - by_sentence * counts.words / counts.sentences - by_word * counts.syllables / counts.words


def _syllables(word: str, language: Language) -> int:
    groups = len(VOWELS[language].findall(word))
    if language == "en" and SILENT_E.search(word):
        groups -= 1
    return max(1, groups)
