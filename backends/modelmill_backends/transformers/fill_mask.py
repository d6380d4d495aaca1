"""Filling a gap in a text by any model of ``AutoModelForMaskedLM``."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

from modelmill.errors import invalid_field
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.shared.literal import Marks
from modelmill_backends.shared.losses import warn_cut, warn_unknown
from modelmill_backends.transformers.characters import Characters
from modelmill_backends.transformers.texts import Row, TextInputs
from modelmill_backends.transformers.weights import Loaded, load_pretrained
from modelmill_tasks.fill_mask import MASKS, Filling, Input, Output

LOGITS_A_PASS = 2**27
"""One pass computes at most so many values (tokens times vocabulary): half a gigabyte."""


class FillMaskRunner(Runner[Input, Loaded]):
    """The scores of all tokens of the vocabulary sum to 1.

    ``Prepared.cost`` is the text's share of the model's window.
    """

    backend = "transformers"
    task = "fill-mask"

    def __init__(self, weights: Loaded, context: LoadContext) -> None:
        super().__init__(weights, context)
        vocabulary = weights.model.config.get_text_config().vocab_size
        self._texts = TextInputs(weights, tokens_a_pass=LOGITS_A_PASS // vocabulary)
        if weights.tokenizer.mask_token is None:
            raise load_failed(context.entry, "its tokenizer has no mask token")
        self._mask: str = weights.tokenizer.mask_token
        self._mask_id: int = weights.tokenizer.mask_token_id
        self._characters = Characters(weights.tokenizer)
        # The mask alone may be spelled out in a text.
        self._marks = Marks(weights.tokenizer, free=(self._mask,))

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        return load_pretrained(context, "AutoModelForMaskedLM", tokenizer=True)

    def group_key(self, item: Input) -> Hashable:
        # forward computes the largest top_k of the batch, and postprocess cuts each item off at its own.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        (text,) = self._marks.broken([self._with_own_mask(item.text)])
        row = self._row(text)
        if self._mask_id not in row["input_ids"]:
            row = self._row(self._around_the_mask(text))
        if list(row["input_ids"]).count(self._mask_id) != 1:
            raise self._refused("the gap is outside the model's window")
        self._warn(text, list(row["input_ids"]))
        return Prepared(item, row, cost=len(row["input_ids"]) / self._texts.window)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        """Scores and tokens of each item, best first; their number is the largest ``top_k`` of the batch."""
        import torch

        top_k = max(prepared.item.config.top_k for prepared in batch)

        def best(**inputs: Any) -> tuple[Any, Any]:
            places = (inputs["input_ids"] == self._mask_id).int().argmax(dim=1)
            logits = self.weights.model(**inputs).logits
            gaps = logits[torch.arange(len(logits), device=logits.device), places].float()
            scores, tokens = gaps.softmax(dim=-1).topk(min(top_k, gaps.shape[-1]))
            return scores, tokens

        return self._texts.run([prepared.data for prepared in batch], best)

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        top_k = prepared.item.config.top_k
        ids = list(prepared.data["input_ids"])
        place = ids.index(self._mask_id)
        return Output(
            results=[
                self._filling(ids, place, float(score), int(token))
                for score, token in zip(raw[0][:top_k], raw[1][:top_k], strict=True)
            ]
        )

    def _filling(self, ids: Sequence[int], place: int, score: float, token: int) -> Filling:
        filled = [token if index == place else other for index, other in enumerate(ids)]
        if len(ids) >= self._texts.window:
            # The text may have been cut in the middle of a character.
            with self.weights.tokenizing:
                sequence = self._characters.decode(filled, whole=True)
        else:
            sequence = self._texts.decode(filled, skip_special_tokens=True)
        return Filling(
            score=min(score, 1.0),
            token=token,
            token_str=self._texts.decode([token]),
            sequence=sequence,
        )

    def _row(self, text: str) -> Row:
        row = self._texts.row(self._texts.encode(text, split_special_tokens=False, warns=False))
        _, places = self._marks.without(row["input_ids"])
        return {name: [values[place] for place in places] for name, values in row.items()}

    def _warn(self, text: str, ids: list[int]) -> None:
        """Warns the caller of what the model does not read of the text."""
        tokenizer = self.weights.tokenizer
        others = tokenizer.num_special_tokens_to_add() + 1
        warn_unknown("text", ids.count(tokenizer.unk_token_id), len(ids) - others)
        if len(ids) >= self._texts.window:
            warn_cut("text", len(ids), self._texts.length(text, split_special_tokens=False))

    def _with_own_mask(self, text: str) -> str:
        """The text, with its one gap as the model's own mask token."""
        spellings = [self._mask] if self._mask in text else MASKS
        found = [spelling for spelling in spellings for _ in range(text.count(spelling))]
        if len(found) != 1:
            raise self._refused(f"holds {len(found)} gaps; it must hold exactly one")
        return text.replace(found[0], self._mask)

    def _around_the_mask(self, text: str) -> str:
        """The part of a long text around the gap, about as long as the window."""
        before, _, after = text.partition(self._mask)
        return self._texts.tail(before, max(1, self._texts.window // 2 - 2)) + self._mask + after

    def _refused(self, problem: str) -> Exception:
        return invalid_field("text", f"{problem}, written as {self._mask}, the model's mask token")
