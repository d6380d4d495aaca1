"""The base of the runners on models that read a text and write another (``AutoModelForSeq2SeqLM``)."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from modelmill_backends.contract import Item, LoadContext, Prepared, Runner
from modelmill_backends.shared.sentences import least_limit, pad
from modelmill_backends.transformers.causal import config_of
from modelmill_backends.transformers.decoding import Defaults
from modelmill_backends.transformers.generation import Generative, Request, beam_group, generate, generative
from modelmill_backends.transformers.stopping import Row
from modelmill_backends.transformers.weights import load_pretrained

DEFAULT_WINDOW = 512
"""Number of tokens that are read of a text, if the model sets no limit; as for T5."""


@dataclass(frozen=True, slots=True)
class Read:
    """One text, prepared for the model."""

    ids: list[int]
    request: Request


class Seq2SeqRunner(Runner[Item, Generative]):
    """Base of the runners on such a model. The runners of one model share its weights."""

    backend = "transformers"

    def __init__(self, weights: Generative, context: LoadContext) -> None:
        super().__init__(weights, context)
        config = weights.loaded.model.config
        self.model_type: str = config.model_type
        self.task_params: Mapping[str, Any] = getattr(config, "task_specific_params", None) or {}
        """Parameters of tasks in older configurations: ``summarization``, ``translation_en_to_de``, …"""
        limits = [weights.tokenizer.model_max_length, getattr(config, "max_position_embeddings", None)]
        self.reads = least_limit(limits, DEFAULT_WINDOW)

    @classmethod
    def load(cls, context: LoadContext) -> Generative:
        return generative(load_pretrained(context, "AutoModelForSeq2SeqLM", tokenizer=True))

    def params_of(self, item: Item) -> Mapping[str, Any]:
        """The part of ``task_params`` for this item."""
        return {}

    def group_key(self, item: Item) -> Hashable:
        params = self.params_of(item)
        return beam_group(self._defaults(params), config_of(item)), self._rules(params)

    def prepared(self, item: Item, ids: list[int], first_token: int | None = None) -> Prepared[Item]:
        """The item, with the tokens of its text.

        Args:
            item: The item.
            ids: Tokens for the encoder.
            first_token: The token that the answer must begin with, such as that of a language.
        """
        window = self.weights.window
        room = None if window is None else window - 1
        defaults = self._defaults(self.params_of(item))
        settings = defaults.resolve(config_of(item), room, one_answer=True)
        if first_token is not None:
            settings = replace(settings, first_token=first_token)
        request = Request(settings, encoded=len(ids))
        return Prepared(item, Read(ids, request), request.cost)

    def forward(self, batch: Sequence[Prepared[Item]]) -> Sequence[Any]:
        found: list[Read] = [prepared.data for prepared in batch]

        def inputs(items: Sequence[int]) -> dict[str, Any]:
            ids, mask = pad([found[item].ids for item in items], self.weights.pad)
            return self.weights.loaded.to_device(input_ids=ids, attention_mask=mask)

        rules = dict(self._rules(self.params_of(batch[0].item)))
        made: list[list[Row]] = generate(
            self.weights, [read.request for read in found], inputs, self.progress, **rules
        )
        return made

    def _defaults(self, params: Mapping[str, Any]) -> Defaults:
        return self.weights.defaults.over(params) if params else self.weights.defaults

    def _rules(self, params: Mapping[str, Any]) -> tuple[tuple[str, Any], ...]:
        """The parameters of a task that the library applies to all rows of a pass."""
        size = params.get("no_repeat_ngram_size")
        return (("no_repeat_ngram_size", size),) if size else ()
