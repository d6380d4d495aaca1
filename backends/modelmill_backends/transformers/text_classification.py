"""Text classification by any model of ``AutoModelForSequenceClassification``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import LoadContext, Prepared
from modelmill_backends.shared.numerics import sigmoid, softmax
from modelmill_backends.transformers.texts import SequenceClassifierRunner
from modelmill_backends.transformers.weights import Loaded
from modelmill_tasks.text_classification import Input, Output, Result

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class TextClassificationRunner(SequenceClassifierRunner[Input]):
    """The labels are the model's ``id2label``; a multi-label model's scores do not sum to 1.

    ``Prepared.cost`` is the text's share of the model's window.
    """

    task = "text-classification"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        config = weights.model.config
        self._labels = [config.id2label[index] for index in range(config.num_labels)]
        self._problem = config.problem_type

    def preprocess(self, item: Input) -> Prepared[Input]:
        row = self._texts.row(self._texts.encode(item.text))
        return Prepared(item, row, cost=len(row["input_ids"]) / self._texts.window)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        return self._texts.logits([prepared.data for prepared in batch])

    def postprocess(self, prepared: Prepared[Input], raw: NDArray[np.float32]) -> Output:
        import numpy as np

        scores = self._scores(raw)
        order = np.argsort(-scores, kind="stable")[: prepared.item.config.top_k]
        return Output(
            results=[Result(label=self._labels[index], score=float(scores[index])) for index in order]
        )

    def _scores(self, logits: NDArray[np.float32]) -> NDArray[Any]:
        """The scores of the labels. The library's pipeline decides in the same way."""
        if self._problem == "regression":
            return logits
        alone = self._problem == "multi_label_classification" or len(self._labels) == 1
        return sigmoid(logits) if alone else softmax(logits)
