"""Token classification by any model of ``AutoModelForTokenClassification``."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.shared.numerics import softmax
from modelmill_backends.transformers.entities import Token, entities
from modelmill_backends.transformers.texts import TextInputs, check_positions
from modelmill_backends.transformers.weights import Loaded, load_pretrained
from modelmill_tasks.token_classification import Input, Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_OVERLAP = 128
"""The most tokens that neighbouring windows of a long text share."""


class TokenClassificationRunner(Runner[Input, Loaded]):
    """The labels are the model's ``id2label``.

    If a text is longer than the window, it is read in windows that overlap. A token in two windows gets its
    scores from the one in which it is further from the edge. ``Prepared.cost`` counts windows.
    """

    backend = "transformers"
    task = "token-classification"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        check_positions(weights, context)
        self._texts = TextInputs(weights)
        room = self._texts.window - weights.tokenizer.num_special_tokens_to_add()
        self._overlap = min(MAX_OVERLAP, room // 4)
        config = weights.model.config
        self._labels = [config.id2label[index] for index in range(config.num_labels)]
        backend_model = weights.tokenizer.backend_tokenizer.model
        self._marks_subwords = bool(getattr(backend_model, "continuing_subword_prefix", None))

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        return load_pretrained(context, "AutoModelForTokenClassification", tokenizer=True)

    def group_key(self, item: Input) -> Hashable:
        # Only postprocess uses aggregation_strategy.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        windows = self._texts.windows(item.text, window=self._texts.window, stride=self._overlap)
        tokens = sum(len(window["input_ids"]) for window in windows)
        return Prepared(item, windows, cost=tokens / self._texts.window)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        rows = [self._texts.row(window) for prepared in batch for window in prepared.data]
        logits = iter(self._texts.logits(rows))
        return [list(islice(logits, len(prepared.data))) for prepared in batch]

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[NDArray[np.float32]]) -> Output:
        text = prepared.item.text
        tokens: list[Token] = []
        for window, logits in zip(prepared.data, raw, strict=True):
            own = self._tokens(text, window, softmax(logits[: len(window["input_ids"])]))
            if tokens:
                # Both windows include the overlap; each has better scores for the half further inside it.
                overlap = min(self._overlap, len(own))
                del tokens[len(tokens) - overlap // 2 :]
                own = own[overlap - overlap // 2 :]
            tokens += own
        return Output(results=entities(text, tokens, self._labels, prepared.item.config.aggregation_strategy))

    def _tokens(self, text: str, window: Any, scores: NDArray[Any]) -> list[Token]:
        names = self._texts.names(window["input_ids"])
        unknown = self.weights.tokenizer.unk_token_id
        tokens = []
        for index, (start, end) in enumerate(window["offset_mapping"]):
            if window["special_tokens_mask"][index]:
                continue
            if self._marks_subwords:
                inner = len(names[index]) != end - start
            else:
                # The library's pipeline guesses in the same way.
                inner = start > 0 and " " not in text[start - 1 : start + 1]
            inner = inner and window["input_ids"][index] != unknown
            tokens.append(Token(start, end, scores[index], inner))
        return tokens
