"""A runner that runs no model: what remains is the cost of the system itself."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_tasks.zero_shot_image_classification import Input, Output


class NoopRunner(Runner[Input, None]):
    """Answers with equal probabilities and does not even decode the image."""

    backend = "noop"
    task = "zero-shot-image-classification"

    @classmethod
    def load(cls, context: LoadContext) -> None:
        return None

    def group_key(self, item: Input) -> Hashable:
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        return Prepared(item, len(item.classes))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[int]:
        return [prepared.data for prepared in batch]

    def postprocess(self, prepared: Prepared[Input], raw: int) -> Output:
        return Output(probabilities=[1 / raw] * raw)
