"""Text embedding by any encoder of ``AutoModel``, pooled as sentence-transformers would."""

from __future__ import annotations

import threading
from collections.abc import Hashable, Sequence
from typing import Any

from backends.contract import LoadContext, Prepared, Runner
from backends.numerics import normalise
from backends.sentences import pad, pool, read_sentence_config
from backends.transformers.weights import Loaded, load_pretrained
from tasks.text_embedding import Input, Output


class TextEmbeddingRunner(Runner[Input, Loaded]):
    """``Prepared.cost`` is the text's share of the model's window."""

    backend = "transformers"
    task = "text-embedding"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._config = read_sentence_config(context.entry, weights.folder)
        # The library sets truncation on the one tokenizer at each call, so threads take turns.
        self._tokenizing = threading.Lock()

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        return load_pretrained(context, "AutoModel", tokenizer=True)

    def group_key(self, item: Input) -> Hashable:
        # The prompt is put before the text in preprocess; normalize concerns postprocess only.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        text = self._config.with_prompt(item.text, item.config.prompt_name)
        with self._tokenizing:
            ids = self.weights.tokenizer(text, truncation=True, max_length=self._config.window)["input_ids"]
        return Prepared(item, ids, cost=len(ids) / self._config.window)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        import torch

        pad_id = self.weights.tokenizer.pad_token_id or 0
        ids, mask = pad([prepared.data for prepared in batch], pad_id)
        with torch.inference_mode():
            inputs = self.weights.to_device(input_ids=ids, attention_mask=mask)
            hidden = self.weights.model(**inputs).last_hidden_state.float()
            pooled = pool(hidden, inputs["attention_mask"], self._config.pooling)
        return list(pooled.cpu().numpy())

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        vector = normalise(raw) if self._config.should_normalise(prepared.item.config.normalize) else raw
        return Output(embedding=vector.tolist())
