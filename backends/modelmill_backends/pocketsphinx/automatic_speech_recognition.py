"""Speech recognition in English by PocketSphinx: hidden Markov models and a trigram language model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed, module_missing
from modelmill_backends.options import RunnerOptions, read_options
from modelmill_backends.shared.audio import open_audio, pieces, require_codecs
from modelmill_backends.shared.transcripts import refuse_config, spoken_words
from modelmill_backends.source import locate
from modelmill_tasks.automatic_speech_recognition import Chunk, Config, Input, Output
from modelmill_tasks.item_warnings import WarningCode, warn

if TYPE_CHECKING:
    from modelmill_backends.shared.audio import Samples

RATE = 16_000
PIECE_S = 10
"""Seconds that are decoded at once. Decoding holds Python's global lock, for about a third of this time."""
FRAMES_PER_S = 100
SILENCE = 1e-3
"""Audio below this amplitude is skipped, because the recogniser finds words in digital silence."""
NOISE = 1e-4
"""Below this amplitude there is no more than the rounding of samples with 16 bits."""
FILES = {"hmm": "en-us", "lm": "en-us.lm.bin", "dict": "cmudict-en-us.dict"}
"""Files of the model, by the name of the decoder's setting."""
FILLER = re.compile(r"<.*>|\[.*\]|\+\+.*\+\+")
VARIANT = re.compile(r"\(\d+\)$")
"""The mark of a pronunciation, where a word has several: ``the(2)``."""


class PocketSphinxRunner(Runner[Input, Any]):
    """``Prepared.cost`` is the number of pieces of at most ten seconds."""

    backend = "pocketsphinx"
    task = "automatic-speech-recognition"

    @classmethod
    def load(cls, context: LoadContext) -> Any:
        read_options(context.entry, RunnerOptions)  # no options
        require_codecs(context.entry)
        try:
            from pocketsphinx import Decoder
        except ModuleNotFoundError as error:
            raise module_missing(context.entry, error.name, ("speech",)) from None
        folder = locate(context.entry)
        files = {name: folder / file for name, file in FILES.items()}
        for file in files.values():
            if not file.exists():
                raise load_failed(context.entry, f"its source holds no {file.name}")
        return Decoder(**{name: str(file) for name, file in files.items()}, loglevel="FATAL")

    def preprocess(self, item: Input) -> Prepared[Input]:
        _check(item.config)
        samples = open_audio(item.audio, RATE)
        if NOISE < _loudness(samples) < SILENCE:
            warn(
                WarningCode.SOUND_CUT,
                "The recording is so quiet (below -60 dB) that the model takes it for silence.",
            )
        parts = pieces(samples, RATE, PIECE_S)
        return Prepared(item, parts, cost=len(parts))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        # One after the other: the decoder does not release Python's lock, so threads would gain nothing.
        found: list[list[Chunk]] = [[] for _ in batch]
        for index, prepared in enumerate(batch):
            total = prepared.data[-1][0] + prepared.data[-1][1].size
            for start, samples in prepared.data:
                if self.progress.is_canceled(index):
                    break
                found[index] += self._words(start / RATE, samples)
                done = (start + samples.size) // RATE
                self.progress.report(index, done, max(1, total // RATE), "seconds")
        return found

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        return spoken_words(raw, prepared.item.config.return_timestamps)

    def _words(self, start_s: float, samples: Samples) -> list[Chunk]:
        if _loudness(samples) < SILENCE:
            return []
        decoder = self.weights
        # Resets the mean and the noise estimated from the previous recording, which would change the result.
        decoder.reinit_feat()
        decoder.start_utt()
        try:
            decoder.process_raw((samples * 32767).astype("<i2").tobytes(), False, True)
        finally:
            decoder.end_utt()
        if decoder.hyp() is None:
            return []
        return [
            Chunk(
                text=VARIANT.sub("", segment.word),
                start=round(start_s + segment.start_frame / FRAMES_PER_S, 2),
                end=round(start_s + (segment.end_frame + 1) / FRAMES_PER_S, 2),
            )
            for segment in decoder.seg()
            if not FILLER.fullmatch(segment.word)
        ]


def _loudness(samples: Samples) -> float:
    """The amplitude, without a constant that a recorder may have added."""
    return float(samples.max() - samples.min()) / 2


def _check(config: Config) -> None:
    if config.language is not None and config.language.strip().lower() not in ("en", "english"):
        raise refuse_config("language", "the model does not know it; it knows: en")
    if config.translate:
        raise refuse_config("translate", "the model knows English only and cannot translate")
