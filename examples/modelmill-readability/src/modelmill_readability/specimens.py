"""The proof of the runner: texts whose words, sentences and syllables were counted by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from modelmill.plugin import Inputs, ModelEntry, Specimen

ENGLISH = {
    "The cat sat on the mat.": (6, 1, 6),
    "The cat sat on the mat. It was happy.": (9, 2, 10),
    "Anna mended the old mill!": (5, 1, 7),
    "Is it far? It is a mile.": (7, 2, 7),
    "The table is little.": (4, 1, 6),
    "Readability.": (1, 1, 5),
}
GERMAN = {
    "Die Katze sitzt auf der Matte.": (6, 1, 8),
    "Das ist gut. Das ist sehr gut.": (7, 2, 7),
    "Der Müller mahlt das Mehl.": (5, 1, 6),
    "Ein alter Baum fällt!": (4, 1, 5),
    "Die Eule schläft.": (3, 1, 4),
}


def english(_folder: Path) -> ModelEntry:
    return entry("en")


def german(_folder: Path) -> ModelEntry:
    return entry("de")


def entry(language: str) -> ModelEntry:
    return ModelEntry(
        name="flesch", backend="readability", tasks=("readability",), options={"language": language}
    )


def english_by_hand(_folder: Path, items: Inputs) -> Sequence[dict[str, Any]]:
    counts = [ENGLISH[item["text"]] for item in items]
    return [
        {"words": words, "sentences": sentences, "syllables": syllables}
        | {"reading_ease": 206.835 - 1.015 * words / sentences - 84.6 * syllables / words}
        for words, sentences, syllables in counts
    ]


def german_by_hand(_folder: Path, items: Inputs) -> Sequence[dict[str, Any]]:
    counts = [GERMAN[item["text"]] for item in items]
    return [
        {"words": words, "sentences": sentences, "syllables": syllables}
        | {"reading_ease": 180 - words / sentences - 58.5 * syllables / words}
        for words, sentences, syllables in counts
    ]


SPECIMENS = [
    Specimen(
        "flesch-english",
        "readability",
        english,
        inputs=[{"text": text, "config": {"per_sentence": len(text) > 30}} for text in ENGLISH],
        bad_input={"text": "1 + 1 = 2"},
        reference=english_by_hand,
    ),
    Specimen(
        "flesch-german",
        "readability",
        german,
        inputs=[{"text": text} for text in GERMAN],
        bad_input={"text": "…"},
        reference=german_by_hand,
    ),
]
