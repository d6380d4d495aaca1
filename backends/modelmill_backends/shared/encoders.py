"""Runners on text encoders of any runtime: embeddings, similarity, and the choice among the caller's classes.

A runtime provides a ``SentenceEncoder``. All runners here use one, so that one model's weights answer
several tasks.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from pydantic import Field

from modelmill_backends.contract import Item, LoadContext, Prepared, Runner, Weights
from modelmill_backends.options import RunnerOptions
from modelmill_backends.shared.losses import Read, losses_of, warn_of
from modelmill_backends.shared.numerics import normalise
from modelmill_backends.shared.sentences import SentenceConfig
from modelmill_backends.shared.text_vectors import TextVectors
from modelmill_backends.shared.zero_shot import Scoring
from modelmill_tasks import sentence_similarity, text_embedding, zero_shot_classification
from modelmill_tasks.item_warnings import ItemWarning, warn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEMPLATE = "This is about {}."
NEUTRAL_CLASS = "something"
"""Fills the template of the neutral sentence, with which each class is compared."""

LISTS_KEPT = 16
"""Number of lists of sentences whose tokens are kept."""
LIST_CHARACTERS = 500_000
"""Characters of the longest list that is kept."""

Tokens = tuple[int, ...]
"""Token ids of one text, special ones included, at most as many as the window holds."""


class EncoderOptions(RunnerOptions):
    """Options of a catalogue entry for a sentence encoder."""

    scale: float = Field(20.0, gt=0, description="Sharpens cosines before the softmax over classes.")


class SentenceEncoder(Protocol):
    """A loaded encoder of any runtime."""

    @property
    def config(self) -> SentenceConfig: ...

    def tokens(self, text: str) -> Read:
        """The tokens of one text, cut off at the window. Runs in threads."""

    def vectors(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        """Pooled vectors ``[n, dim]`` of any length."""


class EncoderRunner(Runner[Item, Weights]):
    """Base of runners on a sentence encoder.

    ``Prepared.cost`` is the text's share of the model's window, so that a batch may hold many short texts or
    few long ones.
    """

    def __init__(self, weights: Weights, context: LoadContext) -> None:
        super().__init__(weights, context)
        self.encoder = self.encoder_of(weights, context)

    @abstractmethod
    def encoder_of(self, weights: Weights, context: LoadContext) -> SentenceEncoder:
        """The encoder of these weights."""

    def group_key(self, item: Item) -> Hashable:
        # Only preprocess and postprocess use the config; each sentence or class has its own vector.
        return ()


class EmbeddingRunner(EncoderRunner[text_embedding.Input, Weights]):
    """Text embedding."""

    task = "text-embedding"

    def preprocess(self, item: text_embedding.Input) -> Prepared[text_embedding.Input]:
        config = self.encoder.config
        read = self.encoder.tokens(config.with_prompt(item.text, item.config.prompt_name))
        warn_of(read)
        return Prepared(item, read.ids, cost=len(read.ids) / config.window)

    def forward(self, batch: Sequence[Prepared[text_embedding.Input]]) -> Sequence[Any]:
        return list(self.encoder.vectors([prepared.data for prepared in batch]))

    def postprocess(self, prepared: Prepared[text_embedding.Input], raw: Any) -> text_embedding.Output:
        asked = prepared.item.config.normalize
        vector = normalise(raw) if self.encoder.config.should_normalise(asked) else raw
        return text_embedding.Output(embedding=vector.tolist())


class ComparingRunner(EncoderRunner[Item, Weights]):
    """Base of runners that compare a text with sentences. Many items of a batch have the same sentences."""

    def __init__(self, weights: Weights, context: LoadContext) -> None:
        super().__init__(weights, context)
        # The keys are tokens: a sentence may have a million characters, but its tokens are bounded.
        self._sentences: Any = TextVectors(self.encoder.vectors)  # type: ignore[arg-type]
        # The items of a batched job usually have the same sentences, up to a thousand of them.
        self._tokenized_once = lru_cache(LISTS_KEPT)(self._tokenized)

    sentences: ClassVar[str]
    """The request's field that the sentences come from."""

    @abstractmethod
    def parts(self, item: Item) -> tuple[str, Sequence[str]]:
        """The text, and the sentences to compare it with."""

    def preprocess(self, item: Item) -> Prepared[Item]:
        text, sentences = self.parts(item)
        read = self._read(text)
        warn_of(read)
        small = sum(map(len, sentences)) <= LIST_CHARACTERS
        others, losses = (self._tokenized_once if small else self._tokenized)(tuple(sentences))
        for loss in losses:
            warn(loss.code, loss.message)
        return Prepared(item, (read.ids, others), cost=len(read.ids) / self.encoder.config.window)

    def forward(self, batch: Sequence[Prepared[Item]]) -> Sequence[NDArray[np.float32]]:
        """The cosines of each item, in the order of its sentences."""
        import numpy as np

        # Equal lists are one object, unless they are too large to be kept, so they share one computation.
        rows_by_list: dict[int, list[int]] = {}
        for row, prepared in enumerate(batch):
            rows_by_list.setdefault(id(prepared.data[1]), []).append(row)
        lists = [batch[rows[0]].data[1] for rows in rows_by_list.values()]
        kept = self._sentences.of([tokens for others in lists for tokens in others])
        texts = normalise(self.encoder.vectors([prepared.data[0] for prepared in batch]))
        cosines: list[Any] = [None] * len(batch)
        for others, rows in zip(lists, rows_by_list.values(), strict=True):
            table = np.stack([kept[tokens] for tokens in others])
            # Not `@`: BLAS uses several threads for it, and waits for cores that other threads use.
            # clip: rounding can give equal texts a cosine a little above 1.
            found = np.einsum("nd,cd->nc", texts[rows], table).clip(-1, 1)
            for row, values in zip(rows, found, strict=True):
                cosines[row] = values
        return cosines

    def _read(self, text: str) -> Read:
        return self.encoder.tokens(self.encoder.config.with_prompt(text, None))

    def _tokenized(self, texts: tuple[str, ...]) -> tuple[tuple[Tokens, ...], list[ItemWarning]]:
        reads = [self._read(text) for text in texts]
        return tuple(read.ids for read in reads), losses_of(reads, self.sentences)


class SimilarityRunner(ComparingRunner[sentence_similarity.Input, Weights]):
    """Sentence similarity by cosine."""

    task = "sentence-similarity"
    sentences = "sentences"

    def parts(self, item: sentence_similarity.Input) -> tuple[str, Sequence[str]]:
        return item.source_sentence, item.sentences

    def postprocess(
        self, prepared: Prepared[sentence_similarity.Input], raw: NDArray[np.float32]
    ) -> sentence_similarity.Output:
        return sentence_similarity.Output(scores=raw.tolist())


class ZeroShotTextRunner(ComparingRunner[zero_shot_classification.Input, Weights]):
    """Zero-shot classification by the cosines of a text with a sentence about each class."""

    task = "zero-shot-classification"
    sentences = "classes"

    @property
    @abstractmethod
    def scoring(self) -> Scoring:
        """How cosines become probabilities."""

    def parts(self, item: zero_shot_classification.Input) -> tuple[str, Sequence[str]]:
        template = item.config.hypothesis_template or TEMPLATE
        names = list(item.classes)
        if self.scoring.needs_neutral(item.config.multi_label):
            names.append(NEUTRAL_CLASS)
        return item.text, [template.replace("{}", name) for name in names]

    def postprocess(
        self, prepared: Prepared[zero_shot_classification.Input], raw: NDArray[np.float32]
    ) -> zero_shot_classification.Output:
        classes = len(prepared.item.classes)
        neutral = float(raw[classes]) if len(raw) > classes else 0.0
        scores = self.scoring.probabilities(raw[:classes], prepared.item.config.multi_label, neutral)
        return zero_shot_classification.Output(probabilities=scores.tolist())
