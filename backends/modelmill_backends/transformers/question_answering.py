"""Extractive question answering by any model of ``AutoModelForQuestionAnswering``."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from modelmill.errors import invalid_field
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.shared.losses import warn_cut
from modelmill_backends.shared.numerics import softmax
from modelmill_backends.transformers.texts import TextInputs, check_positions
from modelmill_backends.transformers.weights import Loaded, load_pretrained
from modelmill_tasks.question_answering import Answer, Input, Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

MAX_WINDOW, MAX_OVERLAP = 384, 128
"""Tokens of a window, and tokens that two windows share, as in training (the library's ``run_qa``)."""

ContextWindow = Mapping[str, Any]
"""A stretch of the context with the question before it: an element of ``TextInputs.windows``."""


class QuestionAnsweringRunner(Runner[Input, Loaded]):
    """Answers are pieces of the context, always whole words.

    If a context is longer than the window, it is read in windows that overlap. The best answers of all
    windows are returned. ``Prepared.cost`` counts windows.
    """

    backend = "transformers"
    task = "question-answering"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        check_positions(weights, context)
        self._texts = TextInputs(weights)
        self._window = min(self._texts.window, MAX_WINDOW)
        self._cls_id: int | None = weights.tokenizer.cls_token_id

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        return load_pretrained(context, "AutoModelForQuestionAnswering", tokenizer=True)

    def group_key(self, item: Input) -> Hashable:
        # Only postprocess uses the config.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        if item.context is None:
            raise invalid_field("context", "this model finds answers in a text; set context")
        for name, history in (("prev_q", item.prev_q), ("prev_a", item.prev_a)):
            if history:
                raise invalid_field(name, "this model takes no conversation; leave prev_q and prev_a out")
        question = self._texts.cut(item.question, self._window // 2)
        if question != item.question:
            whole = self._texts.length(item.question, add_special_tokens=False)
            warn_cut("question", self._window // 2, whole)
        room = self._window - self._texts.length(question, "")
        stride = min(MAX_OVERLAP, self._window // 2, room // 2)
        windows = self._texts.windows(
            question, item.context, window=self._window, stride=stride, field="context"
        )
        # A window may hold nothing of the context, for example if that is only spaces.
        windows = [window for window in windows if 1 in window["sequence_ids"]]
        if not windows:
            raise invalid_field("context", "holds nothing that the model can read")
        tokens = sum(len(window["input_ids"]) for window in windows)
        return Prepared(item, windows, cost=tokens / self._window)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        """For each item one pair per window: the logits of an answer's start and of its end."""

        def ends(**inputs: Any) -> tuple[Any, Any]:
            found = self.weights.model(**inputs)
            return found.start_logits, found.end_logits

        rows = [self._texts.row(window) for prepared in batch for window in prepared.data]
        found = iter(self._texts.run(rows, ends))
        return [list(islice(found, len(prepared.data))) for prepared in batch]

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        item, context = prepared.item, prepared.item.context or ""
        best: dict[tuple[int, int], float] = {}
        for window, (start, end) in zip(prepared.data, raw, strict=True):
            own: set[tuple[int, int]] = set()
            for score, span in self._spans(window, start, end, item.config.max_answer_length):
                best[span] = max(score, best.get(span, 0.0))
                own.add(span)
                if len(own) == item.config.top_k:
                    break
        order = sorted(best, key=lambda span: -best[span])[: item.config.top_k]
        return Output(
            answers=[
                Answer(answer=context[start:end], score=min(best[start, end], 1.0), start=start, end=end)
                for start, end in order
            ]
        )

    def _spans(
        self, window: ContextWindow, start: NDArray[np.float32], end: NDArray[np.float32], longest: int
    ) -> Iterator[tuple[float, tuple[int, int]]]:
        """Score and position of the possible answers in the window, best first.

        As in the library's former pipeline, the score of a span is the product of two softmaxes, of its start
        and of its end. Each runs over the context and the token that means "no answer".
        """
        import numpy as np

        inside = np.array([sequence == 1 for sequence in window["sequence_ids"]])
        silent = np.array([token == self._cls_id for token in window["input_ids"]]) & ~inside
        length = len(inside)
        allowed = np.where(inside | silent, 0.0, -np.inf)
        starts, ends = (softmax(logits[:length] + allowed) * inside for logits in (start, end))
        scores = np.tril(np.triu(np.outer(starts, ends)), longest - 1)
        # Only a small part of all pairs is left: the others end before they start, or are too long.
        places = np.flatnonzero(scores)
        for place in places[np.argsort(-scores.flat[places], kind="stable")]:
            first, last = divmod(int(place), length)
            yield float(scores[first, last]), _by_words(window, first, last)


def _by_words(window: ContextWindow, first: int, last: int) -> tuple[int, int]:
    """From the start of the first token's word to the end of the last token's word, in code points."""
    words, sequences, offsets = window["word_ids"], window["sequence_ids"], window["offset_mapping"]

    def same(one: int, other: int) -> bool:
        return bool(words[one] == words[other] is not None and sequences[one] == sequences[other])

    while first > 0 and same(first, first - 1):
        first -= 1
    while last + 1 < len(words) and same(last, last + 1):
        last += 1
    return int(offsets[first][0]), int(offsets[last][1])
