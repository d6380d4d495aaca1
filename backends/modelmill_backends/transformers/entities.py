"""Turns the scores of tokens into entities, as the pipeline of ``transformers`` does."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from modelmill_tasks.token_classification import AggregationStrategy, Entity

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

NOTHING = "O"
"""The label of a token that is not an entity."""


@dataclass(frozen=True, slots=True)
class Token:
    """A piece of the text with a score for each label; positions are in code points."""

    start: int
    end: int
    scores: NDArray[np.floating[Any]]
    inner: bool
    """Whether it continues the word of the previous token."""


@dataclass(frozen=True, slots=True)
class _Tagged:
    start: int
    end: int
    label: str
    score: float


def entities(
    text: str, tokens: Sequence[Token], labels: Sequence[str], strategy: AggregationStrategy
) -> list[Entity]:
    """The entities among ``tokens``, in order, without those whose label is ``O``.

    Args:
        text: The text that the tokens' positions refer to.
        tokens: In order, without special tokens.
        labels: The model's labels, in the order of the scores.
        strategy: How tokens become entities.
    """
    if strategy in (AggregationStrategy.NONE, AggregationStrategy.SIMPLE):
        tagged = [_tagged([token], token.scores, labels) for token in tokens]
    else:
        choose = _WORD_SCORES[strategy]
        tagged = [_tagged(word, choose(word), labels) for word in _words(tokens)]
    if strategy is not AggregationStrategy.NONE:
        tagged = [_joined(group) for group in _groups(tagged)]
    return [
        Entity(
            entity_group=part.label,
            score=min(part.score, 1.0),
            word=text[part.start : part.end],
            start=part.start,
            end=part.end,
        )
        for part in tagged
        if part.label != NOTHING
    ]


def _tagged(tokens: Sequence[Token], scores: NDArray[Any], labels: Sequence[str]) -> _Tagged:
    best = int(scores.argmax())
    return _Tagged(tokens[0].start, tokens[-1].end, labels[best], float(scores[best]))


def _words(tokens: Sequence[Token]) -> list[list[Token]]:
    words: list[list[Token]] = []
    for token in tokens:
        if words and token.inner:
            words[-1].append(token)
        else:
            words.append([token])
    return words


def _first(word: Sequence[Token]) -> NDArray[Any]:
    return word[0].scores


def _average(word: Sequence[Token]) -> NDArray[Any]:
    import numpy as np

    mean: NDArray[Any] = np.mean([token.scores for token in word], axis=0)
    return mean


def _surest(word: Sequence[Token]) -> NDArray[Any]:
    return max(word, key=lambda token: float(token.scores.max())).scores


_WORD_SCORES: dict[AggregationStrategy, Callable[[Sequence[Token]], NDArray[Any]]] = {
    AggregationStrategy.FIRST: _first,
    AggregationStrategy.AVERAGE: _average,
    AggregationStrategy.MAX: _surest,
}


def _groups(tagged: Sequence[_Tagged]) -> list[list[_Tagged]]:
    """Groups of neighbours with the same tag; ``B-`` begins a new group."""
    groups: list[list[_Tagged]] = []
    for part in tagged:
        begins, tag = _split(part.label)
        if groups and not begins and tag == _split(groups[-1][-1].label)[1]:
            groups[-1].append(part)
        else:
            groups.append([part])
    return groups


def _split(label: str) -> tuple[bool, str]:
    """Whether the label begins an entity, and its tag."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _joined(group: Sequence[_Tagged]) -> _Tagged:
    # Any prefix is removed, also one that is neither B nor I.
    tag = group[0].label.split("-", 1)[-1]
    score = sum(part.score for part in group) / len(group)
    return _Tagged(group[0].start, group[-1].end, tag, score)
