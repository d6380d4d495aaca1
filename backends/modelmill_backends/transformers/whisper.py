"""Speech recognition by Whisper.

Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision" (2022). The model hears
30 seconds at once. Longer recordings are cut at quiet places, and their pieces run as a batch, which bounds
memory and time. The paper runs one piece after the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from modelmill_backends.contract import Prepared
from modelmill_backends.progress import ProgressSink
from modelmill_backends.shared.audio import pieces
from modelmill_backends.shared.transcripts import refuse_config
from modelmill_backends.transformers.characters import Characters
from modelmill_backends.transformers.sounds import MAX_ROWS, Sounds
from modelmill_tasks.automatic_speech_recognition import Chunk, Config, Input, Output
from modelmill_tasks.item_warnings import WarningCode, warn

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from modelmill_backends.shared.audio import Samples

FRAME_S = 0.02
"""Seconds between two of the model's timestamps."""
FRAMES_A_STAMP = 2
"""Frames of the model's input between two timestamps."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A piece of a recording, prepared for the model."""

    start_s: float
    length_s: float
    features: NDArray[np.float32]
    """``[mels, frames]``, padded to 30 seconds."""
    frames: int
    """Number of frames before the padding."""


@dataclass(frozen=True, slots=True)
class Segment:
    """Tokens, with their start and end in seconds from the start of the piece."""

    tokens: list[int]
    start: float
    end: float
    token_ends: list[float] | None = None


@dataclass(frozen=True, slots=True)
class Heard:
    """The model's result for a piece."""

    segments: list[Segment]
    language: str | None
    cut: bool = False
    """The limit of tokens was reached before the end of the piece."""


@dataclass(frozen=True, slots=True)
class _Watch:
    """Stops the rows of canceled items, and reports the progress of the others."""

    progress: ProgressSink
    items: Sequence[int]
    """For each row the position of its item in the batch."""
    counts: Sequence[bool]
    """For each row whether its tokens are the whole progress of its item."""
    limit: int
    """The most tokens of a pass."""

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        import torch

        for index, counts in zip(self.items, self.counts, strict=True):
            if counts:
                done = min(int(input_ids.shape[1]), self.limit)
                self.progress.report(index, done, self.limit, "tokens")
        beams = input_ids.shape[0] // len(self.items)
        stopped = [self.progress.is_canceled(index) for index in self.items for _ in range(beams)]
        return torch.tensor(stopped, dtype=torch.bool, device=input_ids.device)


@dataclass(slots=True)
class _Row:
    """A piece in progress."""

    index: int
    """Position of its item in the batch."""
    piece: Piece
    language: str | None
    seek: int = 0
    """Number of frames that are done."""
    segments: list[Segment] = field(default_factory=list)
    cut: bool = False
    """The last pass reached the limit of tokens."""


class WhisperRecogniser:
    """Transcribes and translates. Tokens are chosen as the model's ``generation_config`` says."""

    def __init__(self, sounds: Sounds) -> None:
        self._sounds = sounds
        self._tokenizer = sounds.loaded.tokenizer
        self._specials = frozenset(self._tokenizer.all_special_ids)
        self._characters = Characters(self._tokenizer)
        generation = sounds.model.generation_config
        self._generation = generation
        known = getattr(generation, "lang_to_id", None) or {}
        self._language_ids = {name.strip("<|>"): index for name, index in known.items()}
        self._multilingual = bool(getattr(generation, "is_multilingual", bool(known)) and known)
        if generation.max_new_tokens is None and generation.max_length is None:
            generation.max_length = sounds.model.config.max_target_positions
        self._limit = int(generation.max_new_tokens or generation.max_length)
        self._first_timestamp = getattr(generation, "no_timestamps_token_id", 10**9) + 1

    def prepare(self, item: Input, samples: Samples) -> Prepared[Input]:
        self._check(item.config)
        rate, longest_s = self._sounds.rate, self._sounds.extractor.chunk_length
        parts = []
        for start, part in pieces(samples, rate, longest_s):
            inputs = self._sounds.features(part, return_attention_mask=True)
            frames = int(inputs["attention_mask"].sum())
            parts.append(Piece(start / rate, part.size / rate, inputs["input_features"], frames))
        return Prepared(item, parts, cost=len(parts))

    def run(self, batch: Sequence[Prepared[Input]], progress: ProgressSink) -> list[list[Heard]]:
        """For each item the results of its pieces."""
        config = batch[0].item.config
        languages = self._languages(batch)
        rows = [
            _Row(index, piece, languages[index]) for index, each in enumerate(batch) for piece in each.data
        ]
        # In a batch, the alignment of words would include the padding that the longest row causes in others.
        step = 1 if config.return_timestamps == "word" else MAX_ROWS
        found: list[list[Heard]] = [[] for _ in batch]
        for first in range(0, len(rows), step):
            part = rows[first : first + step]
            waiting = part
            while waiting := [row for row in waiting if not progress.is_canceled(row.index)]:
                whole = [len(batch[row.index].data) == 1 for row in waiting]
                watch = _Watch(progress, [row.index for row in waiting], whole, self._limit)
                waiting = self._pass(waiting, config, watch)
            for row in part:
                found[row.index].append(Heard(row.segments, row.language, row.cut))
                self._report(progress, row, batch[row.index].data[-1])
        return found

    def answer(self, prepared: Prepared[Input], raw: Sequence[Heard]) -> Output:
        timestamps = prepared.item.config.return_timestamps
        heard = list(zip(prepared.data, raw, strict=False))
        if any(each.cut for each in raw):
            warn(
                WarningCode.OUTPUT_CUT,
                f"In a part of the recording the model reached its limit of {self._limit} tokens; "
                "words may be missing.",
            )
        with self._sounds.loaded.tokenizing:
            texts = [self._text(segment.tokens) for _, each in heard for segment in each.segments]
            text = "".join(texts).strip()
            if timestamps is False:
                return Output(text=text)
            chunks = [chunk for pair in heard for chunk in self._chunks(*pair, timestamps)]
        return Output(text=text, chunks=chunks)

    def _check(self, config: Config) -> None:
        if config.language is not None:
            self._code(config.language)
        if config.translate and not (self._multilingual and hasattr(self._generation, "task_to_id")):
            raise refuse_config("translate", "the model knows only English and cannot translate")
        if config.return_timestamps and not hasattr(self._generation, "no_timestamps_token_id"):
            raise refuse_config("return_timestamps", "the model's generation_config has no timestamps")
        if config.return_timestamps == "word" and not hasattr(self._generation, "alignment_heads"):
            raise refuse_config(
                "return_timestamps",
                "the model has no alignment heads and gives no times of words; use true or false",
            )

    def _code(self, language: str) -> str:
        """The code of a language, from its code or its English name."""
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        named = language.strip().lower().strip("<|>")
        code = str(TO_LANGUAGE_CODE.get(named, named))
        known = sorted(self._language_ids) if self._multilingual else ["en"]
        if code not in known:
            raise refuse_config("language", f"the model does not know it; it knows: {', '.join(known)}")
        return code

    def _languages(self, batch: Sequence[Prepared[Input]]) -> list[str | None]:
        """The language of each item: the caller's or, for a multilingual model, that of the first piece."""
        import torch

        asked = batch[0].item.config.language
        if not self._multilingual:
            return [None] * len(batch)
        asked = asked or getattr(self._generation, "language", None)
        if asked is not None:
            return [self._code(asked)] * len(batch)
        names = {index: name for name, index in self._language_ids.items()}
        found: list[str | None] = []
        for first in range(0, len(batch), MAX_ROWS):
            firsts = [prepared.data[0] for prepared in batch[first : first + MAX_ROWS]]
            with torch.inference_mode():
                ids = self._sounds.model.detect_language(
                    input_features=self._features(firsts), generation_config=self._generation
                )
            found += [names[index] for index in ids.tolist()]
        return found

    def _features(self, parts: Sequence[Piece], seeks: Sequence[int] = ()) -> Any:
        """Input ``[rows, mels, frames]`` with the part of each piece after its ``seek``."""
        import numpy as np

        rows = [piece.features for piece in parts]
        if any(seeks):
            rows = [np.pad(row[:, seek:], [(0, 0), (0, seek)]) for row, seek in zip(rows, seeks, strict=True)]
        return self._sounds.loaded.stacked_on_device(rows).to(self._sounds.model.dtype)

    def _pass(self, rows: Sequence[_Row], config: Config, watch: _Watch) -> list[_Row]:
        """Runs the model on each row from its ``seek``. Returns the rows that are not done.

        With timestamps the model may stop before the end of the piece; the next pass continues from there.
        The library's own loop is not used: it continues into the padding, and fails there with word times.
        """
        found = self._generate(rows, config, watch)
        left = []
        for row, segments in zip(rows, found, strict=True):
            offset_s = row.seek * FRAME_S / FRAMES_A_STAMP
            kept = [self._segment(segment, len(segments), offset_s) for segment in segments]
            row.segments += [segment for segment in kept if segment.start < row.piece.length_s]
            tokens = kept[-1].tokens if kept else []
            heard = 0
            if config.return_timestamps and self._are_times(tokens[-2:]):
                heard = (tokens[-2] - self._first_timestamp) * FRAMES_A_STAMP
            row.seek += heard
            if heard and row.seek < row.piece.frames:
                left.append(row)
            else:
                row.cut = bool(segments) and self._is_unfinished(segments[-1]["result"])
        return left

    def _generate(self, rows: Sequence[_Row], config: Config, watch: _Watch) -> Any:
        import torch
        from transformers import StoppingCriteriaList

        words = config.return_timestamps == "word"
        settings: dict[str, Any] = {}
        if self._multilingual:
            settings["language"] = [row.language for row in rows]
            settings["task"] = "translate" if config.translate else "transcribe"
        if words:
            frames = torch.tensor([row.piece.frames - row.seek for row in rows])
            places = torch.arange(rows[0].piece.features.shape[1])
            settings |= {"return_token_timestamps": True, "attention_mask": places < frames[:, None]}
        model = self._sounds.model
        attention = model.config._attn_implementation
        try:
            with torch.inference_mode():
                found = model.generate(
                    self._features([row.piece for row in rows], [row.seek for row in rows]),
                    return_timestamps=bool(config.return_timestamps),
                    return_segments=True,
                    force_unique_generate_call=True,
                    stopping_criteria=StoppingCriteriaList([watch]),
                    **settings,
                )
        finally:
            if words:
                # The library switches to its slowest attention to get the weights, and does not switch back.
                model.set_attn_implementation(attention)
        return found["segments"]

    def _segment(self, segment: Any, count: int, offset_s: float) -> Segment:
        """One of the library's ``count`` segments of a pass, as plain values."""
        tokens = segment["tokens"].tolist()
        start = offset_s + float(segment["start"])
        if count == 1 and self._is_time(tokens[:1]) and not self._are_times(tokens[-2:]):
            # The library gives a single segment the start of the pass, even if it begins later.
            start += (tokens[0] - self._first_timestamp) * FRAME_S
        ends = segment.get("token_timestamps")
        return Segment(
            tokens,
            start,
            offset_s + float(segment["end"]),
            None if ends is None else [offset_s + float(each) for each in ends],
        )

    def _report(self, progress: ProgressSink, row: _Row, last: Piece) -> None:
        if last.start_s > 0:
            done, total = row.piece.start_s + row.piece.length_s, last.start_s + last.length_s
            progress.report(row.index, int(done), int(total), "seconds")

    def _is_unfinished(self, result: Any) -> bool:
        """Whether a pass did not end by the model's own token for the end."""
        sequence = result["sequences"] if isinstance(result, dict) else result
        ends = self._generation.eos_token_id
        return int(sequence[-1]) not in (ends if isinstance(ends, list) else [ends])

    def _is_time(self, tokens: Sequence[int]) -> bool:
        return bool(tokens) and tokens[0] >= self._first_timestamp

    def _are_times(self, tokens: Sequence[int]) -> bool:
        return len(tokens) > 1 and all(token >= self._first_timestamp for token in tokens)

    def _text(self, tokens: Sequence[int]) -> str:
        return self._characters.decode([token for token in tokens if self._is_text(token)], whole=True)

    def _is_text(self, token: int) -> bool:
        return token < self._first_timestamp and token not in self._specials

    def _chunks(self, piece: Piece, heard: Heard, timestamps: Literal[True, "word"]) -> list[Chunk]:
        found: list[Chunk] = []
        last = 0.0
        for segment in heard.segments:
            if timestamps == "word":
                timed = self._words(segment, last, heard.language)
                last = (segment.token_ends or [last])[-1]
            else:
                timed = [(self._text(segment.tokens), segment.start, segment.end)]
            found += [
                Chunk(text=text.strip(), start=_within(piece, start), end=_within(piece, max(start, end)))
                for text, start, end in timed
                if text.strip()
            ]
        return found

    def _words(self, segment: Segment, last: float, language: str | None) -> list[tuple[str, float, float]]:
        """Words with their times. A token starts where the previous token ends."""
        from transformers.models.whisper.tokenization_whisper import LANGUAGES, _combine_tokens_into_words

        ends = segment.token_ends or []
        spans = list(zip([last, *ends[:-1]], ends, strict=True))
        kept = [
            (token, span) for token, span in zip(segment.tokens, spans, strict=True) if self._is_text(token)
        ]
        words, _, places = _combine_tokens_into_words(
            self._tokenizer, [token for token, _ in kept], LANGUAGES.get(language or "en", "english")
        )
        return [
            (word, kept[indices[0]][1][0], kept[indices[-1]][1][1])
            for word, indices in zip(words, places, strict=True)
            if indices
        ]


def _within(piece: Piece, seconds: float) -> float:
    """The time in the whole recording, in seconds, at most the end of the piece."""
    return round(piece.start_s + min(seconds, piece.length_s), 3)
