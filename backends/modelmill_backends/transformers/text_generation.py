"""Text generation by any model of ``AutoModelForCausalLM``."""

from __future__ import annotations

from collections.abc import Sequence

from modelmill_backends.contract import Prepared
from modelmill_backends.transformers.answers import now, texts_of, usage_of
from modelmill_backends.transformers.causal import CausalRunner
from modelmill_backends.transformers.stopping import Row
from modelmill_tasks.shared.generation import FinishReason
from modelmill_tasks.text_generation import Choice, Config, Input, Output

HINT = " It is a model for conversations: for an answer, set config.chat_template to true."


class TextGenerationRunner(CausalRunner[Input]):
    """Answers the text as a message if the model has a chat template; otherwise continues it."""

    task = "text-generation"

    def preprocess(self, item: Input) -> Prepared[Input]:
        config, system = item.config, item.config.system_message
        if not self._chats(config):
            ids = self.weights.encode(item.text, split_special_tokens=not config.special_tokens)
            return self.prepared(item, ids, "text", continues=True)
        messages = [{"role": "user", "content": item.text}]
        if system is not None:
            messages.insert(0, {"role": "system", "content": system})
        field = "config.chat_template" if system is None else "config.system_message"
        return self.prepared(item, self.encode_chat(messages, field), "text", continues=False)

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[Row]) -> Output:
        hint = HINT if self.weights.marks and not self._chats(prepared.item.config) else ""
        texts = texts_of(self.weights, raw, shows_end=True, hint=hint)
        before = prepared.item.text if prepared.item.config.return_full_text else ""
        choices = [
            Choice(
                index=index,
                text=before + text,
                finish_reason=row.reason or FinishReason.LENGTH,
            )
            for index, (row, text) in enumerate(zip(raw, texts, strict=True))
        ]
        return Output(choices=choices, usage=usage_of(len(prepared.data.prompt), raw), created=now())

    def _chats(self, config: Config) -> bool:
        """Whether the text goes into the chat template."""
        if config.chat_template is not None:
            return config.chat_template
        continues = config.return_full_text or config.special_tokens
        return config.system_message is not None or (self.weights.marks is not None and not continues)
