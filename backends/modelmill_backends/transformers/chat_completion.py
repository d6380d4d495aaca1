"""Chat completion by any model of ``AutoModelForCausalLM`` whose tokenizer has a chat template."""

from __future__ import annotations

from collections.abc import Sequence

from modelmill_backends.contract import Prepared
from modelmill_backends.transformers.causal import CausalRunner
from modelmill_backends.transformers.chat import completion, plain_messages
from modelmill_backends.transformers.stopping import Row
from modelmill_backends.transformers.vision_language import VisionLanguageRunner
from modelmill_tasks.chat_completion import Input, Output


class ChatCompletionRunner(CausalRunner[Input]):
    """For models that read text only. Images are refused."""

    task = "chat-completion"

    def preprocess(self, item: Input) -> Prepared[Input]:
        ids = self.encode_chat(plain_messages(item.messages), "messages")
        return self.prepared(item, ids, "messages", continues=False)

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[Row]) -> Output:
        return completion(self.weights, len(prepared.data.prompt), raw)


class VisionChatCompletionRunner(VisionLanguageRunner[Input]):
    """For models that also take images, such as LLaVA."""

    task = "chat-completion"

    def preprocess(self, item: Input) -> Prepared[Input]:
        return self.prepared(item, item.messages, "messages")

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[Row]) -> Output:
        return completion(self.weights, len(prepared.data.request.prompt), raw)
