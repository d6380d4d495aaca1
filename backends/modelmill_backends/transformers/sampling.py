"""Chooses the next token of each row of a batch by the row's own settings.

``transformers`` applies one configuration to a whole batch. Here its greedy search is the outer loop. For a
row that samples, this module draws the token first and excludes all others, so the search must take it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from modelmill_backends.transformers.decoding import DecodingSettings

MINUS_INFINITY = float("-inf")


class Chooser:
    """A logits processor of the library, for one pass of ``generate``.

    The order is the library's: repetition penalty, minimum length, temperature, top_k, top_p.

    Attributes:
        broken: ``[rows]``: a logit of the row was not a number, so its text is meaningless.
    """

    def __init__(
        self,
        rows: Sequence[DecodingSettings],
        sequence: Sequence[int],
        padding: Any,
        eos: Sequence[int],
        device: str,
    ) -> None:
        """Prepares the choice for the rows of one pass.

        Args:
            rows: The settings of each row.
            sequence: The number of the row among its item's answers; it is added to the item's seed.
            padding: ``[rows]``: number of padding tokens at the left; None without padding.
            eos: Tokens that end a text.
            device: The device of the logits.
        """
        import torch

        self._rows = rows
        self._padding = padding
        self._eos = torch.tensor(list(eos), dtype=torch.long, device=device)
        self._step = 0
        self.broken: Any = torch.zeros(len(rows), dtype=torch.bool, device=device)
        self.ended = [False] * len(rows)
        """Rows for which no more tokens need to be drawn."""
        penalties = [row.repetition_penalty for row in rows]
        self._penalty = torch.tensor(penalties, device=device)[:, None] if set(penalties) != {1.0} else None
        self._drawn = [index for index, row in enumerate(rows) if row.samples]
        self._where = torch.tensor(self._drawn, dtype=torch.long, device=device)
        self._sampler = _Sampler(
            [rows[index] for index in self._drawn], [sequence[index] for index in self._drawn], device
        )

    def __call__(self, ids: Any, scores: Any) -> Any:
        """Scores ``[rows, vocabulary]`` in single precision, after tokens ``[rows, length]``."""
        self.broken |= scores.isnan().any(-1)
        if self._penalty is not None:
            scores = self._penalised(ids, scores)
        self._bound_lengths(scores)
        if self._drawn:
            active = [not self.ended[index] for index in self._drawn]
            tokens = self._sampler.draw(scores[self._where], active)
            scores[self._where] = MINUS_INFINITY
            scores[self._where, tokens] = 0.0
        self._step += 1
        return scores

    def _penalised(self, ids: Any, scores: Any) -> Any:
        """The repetition penalty of Keskar et al. 2019 (CTRL), over the prompt and the text so far."""
        import torch

        size = scores.shape[-1]
        ids = ids.clamp(max=size)
        if self._padding is not None:
            places = torch.arange(ids.shape[1], device=ids.device)
            ids = ids.masked_fill(places < self._padding[:, None], size)
        seen = torch.zeros(len(scores), size + 1, dtype=torch.bool, device=scores.device)
        seen.scatter_(1, ids, True)
        penalised = torch.where(scores < 0, scores * self._penalty, scores / self._penalty)
        return torch.where(seen[:, :size], penalised, scores)

    def _bound_lengths(self, scores: Any) -> None:
        for index, row in enumerate(self._rows):
            if self._step < row.min_new_tokens:
                scores[index, self._eos] = MINUS_INFINITY
            only = row.first_token if self._step == 0 else None
            if row.last_token is not None and self._step == row.max_new_tokens - 1:
                only = row.last_token
            if only is not None:
                scores[index] = MINUS_INFINITY
                scores[index, only] = 0.0


class _Sampler:
    """Draws one token for each row that samples, from the row's own stream of random numbers."""

    def __init__(self, rows: Sequence[DecodingSettings], sequence: Sequence[int], device: str) -> None:
        import torch

        def column(values: Sequence[float]) -> Any:
            return torch.tensor(values, device=device)[:, None]

        self._temperature = column([row.temperature for row in rows]) if rows else None
        self._top_k = [row.top_k for row in rows]
        self._top_p = column([1 - row.top_p for row in rows]) if any(row.top_p < 1 for row in rows) else None
        self._streams = []
        for row, number in zip(rows, sequence, strict=True):
            stream = torch.Generator(device=device)
            if row.seed is None:
                stream.seed()
            else:
                stream.manual_seed(row.seed + number)
            self._streams.append(stream)

    def draw(self, scores: Any, active: Sequence[bool]) -> Any:
        """One token ``[rows]`` from scores ``[rows, vocabulary]``; tokens of inactive rows are meaningless.

        The result equals ``torch.multinomial`` with the row's generator, which also divides by exponential
        noise and takes the largest. But ``multinomial`` fails for the whole batch if one row has no valid
        number.
        """
        import torch

        # Afterwards the largest score is 0, so no temperature can make it infinite.
        scores = (scores - scores.amax(-1, keepdim=True)) / self._temperature
        scores = self._nucleus(self._likeliest(scores))
        noise = torch.ones_like(scores)
        for index, stream in enumerate(self._streams):
            if active[index]:
                noise[index].exponential_(1, generator=stream)
        return (scores.softmax(-1) / noise).argmax(-1)

    def _likeliest(self, scores: Any) -> Any:
        """Keeps the ``top_k`` best scores of each row, and those equal to the last of them."""
        import torch

        size = scores.shape[-1]
        limits = [min(limit, size) if limit else size for limit in self._top_k]
        most = max((limit for limit in limits if limit < size), default=0)
        if not most:
            return scores
        best = scores.topk(most).values
        last = [limit - 1 if limit < size else 0 for limit in limits]
        least = best.gather(1, torch.tensor(last, device=scores.device)[:, None])
        free = torch.tensor([limit == size for limit in limits], device=scores.device)[:, None]
        return scores.masked_fill((scores < least) & ~free, MINUS_INFINITY)

    def _nucleus(self, scores: Any) -> Any:
        """Keeps the most probable tokens that reach ``top_p`` in sum (Holtzman et al. 2020), at least one."""
        if self._top_p is None:
            return scores
        ordered, places = scores.sort(descending=False)
        unlikely = ordered.softmax(-1).cumsum(-1) <= self._top_p
        unlikely[:, -1] = False
        return scores.masked_fill(unlikely.scatter(1, places, unlikely), MINUS_INFINITY)
