"""The base of the runners on models that continue texts (``AutoModelForCausalLM``)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from modelmill.errors import invalid_field
from modelmill_backends.contract import Item, LoadContext, Prepared, Runner
from modelmill_backends.transformers.chat import templated
from modelmill_backends.transformers.decoding import check_room
from modelmill_backends.transformers.generation import (
    Generative,
    Request,
    beam_group,
    generate,
    generative,
    pad_left,
)
from modelmill_backends.transformers.weights import load_pretrained
from modelmill_tasks.shared.generation import GenerationConfig


class CausalRunner(Runner[Item, Generative]):
    """Base of the runners on such a model. The runners of one model share its weights."""

    backend = "transformers"

    @classmethod
    def load(cls, context: LoadContext) -> Generative:
        loaded = load_pretrained(context, "AutoModelForCausalLM", tokenizer=True)
        return generative(loaded, template=loaded.tokenizer.chat_template)

    def group_key(self, item: Item) -> Hashable:
        return beam_group(self.weights.defaults, config_of(item))

    def encode_chat(self, messages: Sequence[dict[str, Any]], field: str) -> list[int]:
        """Tokens of a conversation, up to the start of the assistant's answer.

        Raises:
            ModelmillError: ``invalid_input`` for ``field``: there is no chat template, or it refuses the
                conversation.
        """
        marks = self.weights.marks
        if marks is None:
            raise invalid_field(
                field, "this model has no chat template; use text-generation with a plain text"
            )
        text = templated(self.weights.tokenizer, marks, messages, field)
        # The template contains the special tokens already.
        ids = self.weights.encode(text, add_special_tokens=False, split_special_tokens=False)
        return marks.without(ids)[0]

    def prepared(self, item: Item, ids: list[int], field: str, *, continues: bool) -> Prepared[Item]:
        """The item, with the tokens of its prompt.

        Raises:
            ModelmillError: ``invalid_input`` for ``field``: the prompt has no tokens, or fills the window.
        """
        if not ids:
            raise invalid_field(field, "holds nothing that the model's tokenizer knows")
        self.weights.warn_of_unknown(ids, field)
        room = check_room(field, len(ids), self.weights.window)
        settings = self.weights.defaults.resolve(config_of(item), room)
        request = Request(settings, ids, continues)
        return Prepared(item, request, request.cost)

    def forward(self, batch: Sequence[Prepared[Item]]) -> Sequence[Any]:
        requests: list[Request] = [prepared.data for prepared in batch]

        def inputs(items: Sequence[int]) -> dict[str, Any]:
            ids, mask = pad_left([requests[item].prompt for item in items], self.weights.pad)
            return self.weights.loaded.to_device(input_ids=ids, attention_mask=mask)

        return generate(self.weights, requests, inputs, self.progress)


def config_of(item: Any) -> GenerationConfig:
    """The generation config of an item of any generating task."""
    config: GenerationConfig = item.config
    return config
