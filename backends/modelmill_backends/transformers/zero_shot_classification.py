"""Zero-shot classification of texts by natural language inference: does the text entail "This is about …"?

Source: Yin et al., "Benchmarking Zero-shot Text Classification" (2019), as in the library's pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelmill.errors import invalid_field
from modelmill_backends.contract import LoadContext, Prepared
from modelmill_backends.failures import load_failed
from modelmill_backends.shared.losses import warn_cut, warn_unknown
from modelmill_backends.shared.numerics import softmax
from modelmill_backends.transformers.texts import Row, SequenceClassifierRunner
from modelmill_backends.transformers.weights import Loaded
from modelmill_tasks.zero_shot_classification import Input, Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

TEMPLATE = "This example is {}."
"""The template of the library's own pipeline."""


class ZeroShotClassificationRunner(SequenceClassifierRunner[Input]):
    """Any model with a label that begins with "entail".

    ``Prepared.cost`` counts the tokens of all pairs of the text and a hypothesis, in windows.
    """

    task = "zero-shot-classification"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        labels: dict[int, str] = weights.model.config.id2label
        found = [index for index, label in labels.items() if label.lower().startswith("entail")]
        if not found or len(labels) < 2:
            raise load_failed(
                context.entry,
                "it was not trained on natural language inference: none of its labels is entailment",
            )
        self._entailment = found[0]
        # As in the library's pipeline: contradiction is the last label or the first.
        self._contradiction = -1 if self._entailment == 0 else 0

    def preprocess(self, item: Input) -> Prepared[Input]:
        template = item.config.hypothesis_template or TEMPLATE
        hypotheses = [template.replace("{}", name) for name in item.classes]
        rows = self._pairs(item.text, hypotheses)
        tokens = sum(len(row["input_ids"]) for row in rows)
        return Prepared(item, rows, cost=tokens / self._texts.window)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        import numpy as np

        logits = iter(self._texts.logits([row for prepared in batch for row in prepared.data]))
        return [np.stack(list(islice(logits, len(prepared.data)))) for prepared in batch]

    def postprocess(self, prepared: Prepared[Input], raw: NDArray[np.float32]) -> Output:
        if prepared.item.config.multi_label or len(raw) == 1:
            # Each class independently: entailment against contradiction.
            scores = softmax(raw[:, [self._contradiction, self._entailment]])[:, 1]
        else:
            scores = softmax(raw[:, self._entailment])
        return Output(probabilities=scores.tolist())

    def _pairs(self, text: str, hypotheses: Sequence[str]) -> list[Row]:
        """A row of the text with each hypothesis. If a row is too long, the end of the text is left out."""
        texts, whole = self._texts, text
        own: list[list[int]] = []
        # Text beyond twice the window cannot reach the model. It is cut here, so that it is not tokenized
        # again for each of a thousand classes.
        text = texts.cut(text, 2 * texts.window)
        rows = []
        for index, hypothesis in enumerate(hypotheses):
            if texts.length("", hypothesis) >= texts.window:
                raise invalid_field(
                    f"classes.{index}",
                    f"fills the model's window of {texts.window} tokens with its template; shorten it",
                )
            encoded = texts.encode(text, hypothesis, truncation="only_first", warns=False)
            rows.append(texts.row(encoded))
            # Tokens of the text: the library numbers the two texts of a pair.
            numbers = zip(encoded["input_ids"], encoded.sequence_ids(), strict=True)
            own.append([number for number, sequence in numbers if sequence == 0])
        shortest = min(own, key=len)
        warn_unknown("text", shortest.count(self.weights.tokenizer.unk_token_id), len(shortest))
        if max(len(row["input_ids"]) for row in rows) >= texts.window:
            warn_cut("text", len(shortest), texts.length(whole, add_special_tokens=False))
        return rows
