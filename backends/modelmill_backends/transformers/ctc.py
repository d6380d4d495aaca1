"""Speech recognition by models of ``AutoModelForCTC``: wav2vec2, HuBERT, MMS and similar ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import Prepared
from modelmill_backends.progress import ProgressSink
from modelmill_backends.shared.audio import pieces
from modelmill_backends.shared.transcripts import refuse_config, spoken_words
from modelmill_backends.transformers.sounds import MAX_ROWS, Sounds
from modelmill_tasks.automatic_speech_recognition import Chunk, Config, Input, Output

if TYPE_CHECKING:
    from modelmill_backends.shared.audio import Samples

PIECE_S = 30
"""Longer recordings are cut at quiet places, as the cost of attention grows with the square of the length."""


class CtcRecogniser:
    """Takes the most probable token of each frame. The tokenizer's delimiter separates words."""

    def __init__(self, sounds: Sounds) -> None:
        self._sounds = sounds
        # Seconds of one frame of logits.
        self._frame_s = getattr(sounds.model.config, "inputs_to_logits_ratio", 320) / sounds.rate

    def prepare(self, item: Input, samples: Samples) -> Prepared[Input]:
        _check(item.config)
        parts = [
            (start / self._sounds.rate, self._sounds.features(part))
            for start, part in pieces(samples, self._sounds.rate, PIECE_S)
        ]
        return Prepared(item, parts, cost=len(parts))

    def run(self, batch: Sequence[Prepared[Input]], progress: ProgressSink) -> list[list[Any]]:
        """For each item, the token ids of the frames of its pieces."""
        rows = [(index, row) for index, prepared in enumerate(batch) for _, row in prepared.data]
        found: list[list[Any]] = [[] for _ in batch]
        # Rows share passes only within such a part, so that progress is reported after each part.
        step = 4 * MAX_ROWS
        for first in range(0, len(rows), step):
            part = [
                (index, row) for index, row in rows[first : first + step] if not progress.is_canceled(index)
            ]
            logits = self._sounds.run([row for _, row in part])
            for (index, row), frames in zip(part, logits, strict=True):
                found[index].append(frames[: self._frames(row)].argmax(axis=-1))
                total = len(batch[index].data) * PIECE_S
                progress.report(index, len(found[index]) * PIECE_S, total, "seconds")
        return found

    def answer(self, prepared: Prepared[Input], raw: Sequence[Any]) -> Output:
        words: list[Chunk] = []
        for (start_s, _), ids in zip(prepared.data, raw, strict=False):
            with self._sounds.loaded.tokenizing:
                # Special tokens are kept: the blank between equal letters is one, and decode needs it.
                decoded = self._sounds.loaded.tokenizer.decode(
                    ids, skip_special_tokens=False, output_word_offsets=True
                )
            words += [
                Chunk(
                    text=word["word"],
                    start=round(start_s + float(word["start_offset"] * self._frame_s), 3),
                    end=round(start_s + float(word["end_offset"] * self._frame_s), 3),
                )
                for word in decoded.word_offsets
            ]
        return spoken_words(words, prepared.item.config.return_timestamps)

    def _frames(self, row: Any) -> int | None:
        """Number of frames of logits without the padding; None if this model's inputs are never padded."""
        if not self._sounds.may_pad:
            return None
        config = self._sounds.model.config
        length = int(row["input_values"].shape[0])
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            length = (length - kernel) // stride + 1
        return length


def _check(config: Config) -> None:
    if config.language is not None:
        raise refuse_config(
            "language", "the model knows only the language that it was trained on; leave language out"
        )
    if config.translate:
        raise refuse_config("translate", "the model cannot translate; leave translate out")
