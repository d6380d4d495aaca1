"""Sentence encoders of ``AutoModel``, pooled as in sentence-transformers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelmill.catalogue import ModelEntry
from modelmill_backends.contract import Item, LoadContext
from modelmill_backends.shared.encoders import EncoderRunner, Tokens
from modelmill_backends.shared.losses import Read
from modelmill_backends.shared.sentences import pool, read_sentence_config
from modelmill_backends.transformers.texts import TextInputs
from modelmill_backends.transformers.weights import Loaded, load_pretrained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class Encoder:
    """A loaded sentence encoder."""

    def __init__(self, loaded: Loaded, entry: ModelEntry) -> None:
        self.config = read_sentence_config(entry, loaded.folder)
        self._model = loaded.model
        self._texts = TextInputs(loaded, self.config.window)

    def tokens(self, text: str) -> Read:
        return self._texts.read(self._texts.encode(text, warns=False), text)

    def vectors(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        import numpy as np

        def pooled(**inputs: Any) -> tuple[Any]:
            hidden = self._model(**inputs).last_hidden_state.float()
            return (pool(hidden, inputs["attention_mask"], self.config.pooling),)

        found = self._texts.run(
            [{"input_ids": row, "attention_mask": [1] * len(row)} for row in rows], pooled
        )
        return self.config.finished(np.stack([vector for (vector,) in found]))


class TransformersEncoderRunner(EncoderRunner[Item, Loaded]):
    """Any encoder of ``AutoModel``. A folder that sentence-transformers saved defines the pooling."""

    backend = "transformers"

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        return load_pretrained(context, "AutoModel", tokenizer=True)

    def encoder_of(self, weights: Loaded, context: LoadContext) -> Encoder:
        return Encoder(weights, context.entry)
