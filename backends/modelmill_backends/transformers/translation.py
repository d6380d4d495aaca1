"""Translation by any model of ``AutoModelForSeq2SeqLM``: T5, Marian, NLLB, mBART, M2M-100, …"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from modelmill_backends.contract import LoadContext, Prepared
from modelmill_backends.transformers.answers import now, texts_of, usage_of
from modelmill_backends.transformers.generation import Generative
from modelmill_backends.transformers.languages import Way, languages_of
from modelmill_backends.transformers.seq2seq import Seq2SeqRunner
from modelmill_backends.transformers.stopping import Row
from modelmill_tasks.translation import Input, Output

MARK = ">>"
"""Begins the name of a language before a text, for Marian."""


class TranslationRunner(Seq2SeqRunner[Input]):
    """The kind of model decides how languages are named and passed to it (``languages``)."""

    task = "translation"

    def __init__(self, weights: Generative, context: LoadContext) -> None:
        super().__init__(weights, context)
        self._languages = languages_of(self.model_type, weights, self.task_params)

    def params_of(self, item: Input) -> Mapping[str, Any]:
        return self._way(item).params

    def preprocess(self, item: Input) -> Prepared[Input]:
        way = self._way(item)
        text = way.prefix + item.text
        if not way.prefix and text.startswith(MARK):
            # Marian's tokenizer would take the text's own mark for a language.
            text = " " + text
        ids = self.weights.read(text, self.reads, source=way.source_code)
        return self.prepared(item, ids, way.first_token)

    def postprocess(self, prepared: Prepared[Input], raw: Sequence[Row]) -> Output:
        text = texts_of(self.weights, raw)[0].strip()
        return Output(translation_text=text, usage=usage_of(len(prepared.data.ids), raw), created=now())

    def _way(self, item: Input) -> Way:
        return self._languages.way(item.config.source_language, item.config.target_language)
