"""The runner of the task ``readability``."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from modelmill.plugin import LoadContext, Prepared, Runner, RunnerOptions, invalid_field, read_options
from modelmill_readability.formula import Counts, Language, count, reading_ease, split
from modelmill_readability.task import Input, Output, Sentence


class ReadabilityOptions(RunnerOptions):
    """The options that a models file may set."""

    language: Language = "en"


class ReadabilityRunner(Runner[Input, Language]):
    """Rates texts. Its weights are the name of a language; a real model reads weights from a file."""

    backend = "readability"
    task = "readability"

    @classmethod
    def load(cls, context: LoadContext) -> Language:
        return read_options(context.entry, ReadabilityOptions).language

    def group_key(self, item: Input) -> Hashable:
        # Only postprocess reads the config, so all items may share a forward pass.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        sentences = split(item.text)
        if not sentences:
            raise invalid_field("text", "holds no word")
        return Prepared(item, sentences)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Counts]:
        return [count(prepared.data, self.weights) for prepared in batch]

    def postprocess(self, prepared: Prepared[Input], raw: Counts) -> Output:
        per_sentence = None
        if prepared.item.config.per_sentence:
            per_sentence = [
                Sentence(sentence=sentence, reading_ease=self._ease(count([sentence], self.weights)))
                for sentence in prepared.data
            ]
        return Output(
            reading_ease=self._ease(raw),
            words=raw.words,
            sentences=raw.sentences,
            syllables=raw.syllables,
            per_sentence=per_sentence,
        )

    def _ease(self, counts: Counts) -> float:
        return round(reading_ease(counts, self.weights), 4)
