"""Text generation by any model of ``AutoModelForCausalLM``."""

from __future__ import annotations

from collections.abc import Sequence

from modelmill_backends.contract import Prepared
from modelmill_backends.transformers.causal import CausalRunner
from modelmill_backends.transformers.generation import now, text_of, usage_of
from modelmill_backends.transformers.stopping import Row
from modelmill_tasks.shared.generation import FinishReason
from modelmill_tasks.text_generation import Choice, Input, Output


class TextGenerationRunner(CausalRunner[Input]):
    """Continues the text. If there is a system message, answers the text as in a chat."""

    task = "text-generation"

    def preprocess(self, item: Input) -> Prepared[Input]:
        system = item.config.system_message
        if system is None:
            return self.prepared(item, self.weights.encode(item.text), "text", continues=True)
        messages = [{"role": "system", "content": system}, {"role": "user", "content": item.text}]
        ids = self.encode_chat(messages, "config.system_message")
        return self.prepared(item, ids, "text", continues=False)

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[Row]) -> Output:
        before = prepared.item.text if prepared.item.config.return_full_text else ""
        choices = [
            Choice(
                index=index,
                text=before + text_of(self.weights, row),
                finish_reason=row.reason or FinishReason.LENGTH,
            )
            for index, row in enumerate(raw)
        ]
        return Output(choices=choices, usage=usage_of(len(prepared.data.prompt), raw), created=now())
