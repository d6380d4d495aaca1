"""Summarization by any model of ``AutoModelForSeq2SeqLM``: T5, BART, Pegasus, …"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelmill_backends.contract import LoadContext, Prepared
from modelmill_backends.transformers.answers import now, texts_of, usage_of
from modelmill_backends.transformers.generation import Generative
from modelmill_backends.transformers.seq2seq import Seq2SeqRunner
from modelmill_backends.transformers.stopping import Row
from modelmill_tasks.summarization import Input, Output

T5_PREFIX = "summarize: "
"""As T5 was trained (Raffel et al. 2020)."""


class SummarizationRunner(Seq2SeqRunner[Input]):
    """The defaults are the model's parameters for the task, which older configurations have."""

    task = "summarization"

    def __init__(self, weights: Generative, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._params: Mapping[str, Any] = self.task_params.get("summarization", {})
        self._prefix = str(self._params.get("prefix", T5_PREFIX if self.model_type == "t5" else ""))

    def params_of(self, item: Input) -> Mapping[str, Any]:
        return self._params

    def preprocess(self, item: Input) -> Prepared[Input]:
        return self.prepared(item, self.weights.read(self._prefix + item.text, self.reads))

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[Row]) -> Output:
        text = texts_of(self.weights, raw)[0].strip()
        return Output(summary_text=text, usage=usage_of(len(prepared.data.ids), raw), created=now())
