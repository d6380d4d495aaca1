"""Zero-shot classification of images by cosine: the part that CLIP, SigLIP and ConSE share.

A runner embeds images and sentences into one space; everything else is here. All items of a batch share one
pass over their images, even if their classes differ. The embeddings of sentences are kept.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar

from modelmill_backends.contract import LoadContext, Prepared, Runner, Weights
from modelmill_backends.shared.losses import Read, losses_of
from modelmill_backends.shared.numerics import normalise, sigmoid, softmax
from modelmill_backends.shared.text_vectors import TextVectors
from modelmill_tasks.item_warnings import ItemWarning, warn
from modelmill_tasks.shared.images import open_image
from modelmill_tasks.zero_shot_image_classification import Input, Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

NEUTRAL_CLASS = "thing"
"""Fills the template of the neutral sentence, with which each class is compared."""


LISTS_KEPT = 16
"""Number of lists of classes whose warnings are kept."""


@dataclass(frozen=True, slots=True)
class Scoring:
    """How a model turns cosines into probabilities: ``scale * cosine + bias``.

    Attributes:
        scale: The model's ``exp(logit_scale)``.
        bias: SigLIP's ``logit_bias``; 0 elsewhere.
        sigmoid: Whether it was trained to judge each class independently (SigLIP).
    """

    scale: float
    bias: float = 0.0
    sigmoid: bool = False

    def needs_neutral(self, multi_label: bool | None) -> bool:
        return bool(multi_label) and not self.sigmoid

    def probabilities(
        self, cosines: NDArray[np.float32], multi_label: bool | None, neutral: float = 0.0
    ) -> NDArray[np.float64]:
        """One probability per class.

        ``multi_label`` None: as the model was trained. False: softmax. True: SigLIP's sigmoid. The cosines
        of a model trained with softmax have no zero point, so for them the sigmoid takes the difference
        between the class and the neutral sentence.

        Args:
            cosines: ``[classes]``.
            multi_label: As in the task's config.
            neutral: Cosine with the neutral sentence, if ``needs_neutral``.
        """
        if self.needs_neutral(multi_label):
            return sigmoid(self.scale * (cosines - neutral))
        logits = self.scale * cosines + self.bias
        return sigmoid(logits) if self.sigmoid and multi_label is not False else softmax(logits)


class ZeroShotRunner(Runner[Input, Weights]):
    """Base of runners that compare an image's vector with the vectors of sentences."""

    task = "zero-shot-image-classification"
    template: ClassVar[str]
    """The sentence around a class, if the caller gives none."""

    def __init__(self, weights: Weights, context: LoadContext) -> None:
        super().__init__(weights, context)
        self.text_vectors = TextVectors(self.encode_texts)
        # The items of a batched job usually have the same classes.
        self._losses_once = lru_cache(LISTS_KEPT)(self._losses)

    @property
    @abstractmethod
    def scoring(self) -> Scoring:
        """Scale and kind of the model's probabilities."""

    @abstractmethod
    def pixels(self, image: Image) -> Any:
        """The input of ``encode_images`` for one RGB image. Runs in threads."""

    @abstractmethod
    def encode_images(self, pixels: Sequence[Any]) -> NDArray[np.float32]:
        """Vectors ``[n, dim]`` of any length, in one pass."""

    @abstractmethod
    def encode_texts(self, sentences: Sequence[str]) -> NDArray[np.float32]:
        """Vectors ``[n, dim]`` of any length, in one pass."""

    @abstractmethod
    def read(self, sentence: str) -> Read | None:
        """The tokens of one sentence as the model reads it; None if that is not known. Runs in threads."""

    def group_key(self, item: Input) -> Hashable:
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        for loss in self._losses_once(self._sentences(item)[: len(item.classes)]):
            warn(loss.code, loss.message)
        return Prepared(item, self.pixels(open_image(item.image)))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        import numpy as np

        # Items with the same classes share one computation of their cosines.
        rows_by_texts: dict[tuple[str, ...], list[int]] = {}
        for row, prepared in enumerate(batch):
            rows_by_texts.setdefault(self._sentences(prepared.item), []).append(row)
        vectors = self.text_vectors.of([text for texts in rows_by_texts for text in texts])
        images = normalise(self.encode_images([prepared.data for prepared in batch]))
        cosines: list[Any] = [None] * len(batch)
        for texts, rows in rows_by_texts.items():
            table = np.stack([vectors[text] for text in texts])
            # Not `@`: BLAS uses several threads for it, and waits for cores on which images are decoded.
            found = np.einsum("nd,cd->nc", images[rows], table)
            for row, values in zip(rows, found, strict=True):
                cosines[row] = values
        return cosines

    def postprocess(self, prepared: Prepared[Input], raw: NDArray[np.float32]) -> Output:
        classes = len(prepared.item.classes)
        neutral = float(raw[classes]) if len(raw) > classes else 0.0
        scores = self.scoring.probabilities(raw[:classes], prepared.item.config.multi_label, neutral)
        return Output(probabilities=scores.tolist())

    def _losses(self, sentences: tuple[str, ...]) -> list[ItemWarning]:
        reads = [self.read(sentence) for sentence in sentences]
        return losses_of([read for read in reads if read is not None], "classes")

    def _sentences(self, item: Input) -> tuple[str, ...]:
        """The classes' sentences, then the neutral one if the scoring needs it."""
        template = item.config.hypothesis_template or self.template
        names = list(item.classes)
        if self.scoring.needs_neutral(item.config.multi_label):
            names.append(NEUTRAL_CLASS)
        return tuple(template.replace("{}", name) for name in names)
