"""Audio classification by any model of ``AutoModelForAudioClassification``."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.shared.classes import best_classes
from modelmill_backends.shared.numerics import sigmoid, softmax
from modelmill_backends.transformers.sounds import Sounds, load_sounds
from modelmill_tasks.audio_classification import Input, Output
from modelmill_tasks.item_warnings import WarningCode, warn

MAX_S = 60
"""Seconds that the model hears. The cost of wav2vec2's attention grows with the square of the length."""

BARELY_S = 0.1
"""A loss that is shorter than this is not worth a word."""


class AudioClassificationRunner(Runner[Input, Sounds]):
    """The labels are the model's ``id2label``; a multi-label model's scores do not sum to 1.

    ``Prepared.cost`` is the length in quarters of a minute, rounded up.
    """

    backend = "transformers"
    task = "audio-classification"

    def __init__(self, weights: Sounds, context: LoadContext) -> None:
        super().__init__(weights, context)
        config = weights.model.config
        self._labels = [config.id2label[index] for index in range(config.num_labels)]
        # The library's pipeline decides in the same way.
        self._probabilities = sigmoid if config.problem_type == "multi_label_classification" else softmax

    @classmethod
    def load(cls, context: LoadContext) -> Sounds:
        return load_sounds(context, "AutoModelForAudioClassification")

    def group_key(self, item: Input) -> Hashable:
        # Only postprocess uses top_k.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        samples, rate = self.weights.open(item.audio), self.weights.rate
        heard_s, length_s = min(MAX_S, self.weights.window_s or MAX_S), samples.size / rate
        if length_s >= heard_s + BARELY_S:
            warn(
                WarningCode.SOUND_CUT,
                f"The model heard the first {heard_s:.3g} s of {length_s:.1f} s.",
            )
        samples = samples[: MAX_S * rate]
        cost = 1 + samples.size // (15 * rate)
        return Prepared(item, self.weights.features(samples), cost=cost)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        return [self._probabilities(row) for row in self.weights.run([each.data for each in batch])]

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        return Output(classes=best_classes(raw, self._labels, prepared.item.config.top_k).classes)
