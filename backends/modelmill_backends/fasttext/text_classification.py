"""Text classification by a supervised fastText model, such as the one that identifies languages."""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed, module_missing
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.source import locate
from modelmill_tasks.text_classification import Input, Output, Result

LABEL = "__label__"
"""Prefix that fastText puts before each label."""
END = re.compile(r"(?<!\S)</s>(?!\S)")
"""The word at which fastText stops reading."""
MOSTLY = 0.8
"""Share of capital letters from which a text counts as written in capitals."""
ENOUGH = 5
"""Letters of a text that may be an abbreviation: up to so many, capitals are kept."""


class FastTextOptions(RunnerOptions):
    """Options of a catalogue entry."""

    fold_capitals: bool = Field(
        False,
        description="Convert a text that is written in capitals to small letters: a model trained on running "
        "text has seen few capitals.",
    )


@dataclass(frozen=True, slots=True)
class Classifier:
    """A loaded model."""

    model: Any
    options: FastTextOptions


class FastTextRunner(Runner[Input, Classifier]):
    """The labels are the model's own, without fastText's prefix. Its source is a ``.bin`` or ``.ftz``."""

    backend = "fasttext"
    task = "text-classification"

    @classmethod
    def load(cls, context: LoadContext) -> Classifier:
        entry = context.entry
        options = read_options(entry, FastTextOptions)
        try:
            import fasttext
        except ModuleNotFoundError as error:
            raise module_missing(entry, error.name, ("language-id",)) from None
        file = locate(entry, ("*.bin", "*.ftz"))
        if file.is_dir():
            files = sorted([*file.glob("*.ftz"), *file.glob("*.bin")])
            if len(files) != 1:
                raise load_failed(
                    entry, f"its source holds {len(files)} files *.ftz and *.bin; one is needed"
                )
            file = files[0]
        try:
            return Classifier(fasttext.load_model(str(file)), options)
        except ValueError:
            raise load_failed(entry, "its file is not a fastText model") from None

    def group_key(self, item: Input) -> Hashable:
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        # fastText takes each line as a separate text, so line breaks become spaces.
        text = " ".join(END.sub("</s >", line) for line in item.text.splitlines())
        if self.weights.options.fold_capitals and _in_capitals(text):
            text = text.lower()
        return Prepared(item, text)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        # fastText has no batches; a text takes microseconds.
        predict = self.weights.model.predict
        return [predict(prepared.data, k=prepared.item.config.top_k) for prepared in batch]

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        labels, scores = raw
        return Output(
            results=[
                # Rounding can give a sum a little above 1.
                Result(label=label.removeprefix(LABEL), score=min(float(score), 1.0))
                for label, score in zip(labels, scores, strict=True)
            ]
        )


def _in_capitals(text: str) -> bool:
    letters = [letter for letter in text if letter.isalpha()]
    capitals = sum(letter.isupper() for letter in letters)
    return len(letters) > ENOUGH and capitals > MOSTLY * len(letters)
