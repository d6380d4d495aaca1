"""Speech recognition by Whisper and by models of ``AutoModelForCTC``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from modelmill.catalogue import Source
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.options import read_options
from modelmill_backends.source import locate
from modelmill_backends.transformers.ctc import CtcRecogniser
from modelmill_backends.transformers.sounds import Sounds, load_sounds
from modelmill_backends.transformers.weights import TransformersOptions
from modelmill_backends.transformers.whisper import WhisperRecogniser
from modelmill_tasks.automatic_speech_recognition import Input, Output


class SpeechRecognitionRunner(Runner[Input, Sounds]):
    """``Prepared.cost`` is the number of pieces of at most 30 seconds."""

    backend = "transformers"
    task = "automatic-speech-recognition"

    def __init__(self, weights: Sounds, context: LoadContext) -> None:
        super().__init__(weights, context)
        whisper = weights.model.config.model_type == "whisper"
        self._recogniser = WhisperRecogniser(weights) if whisper else CtcRecogniser(weights)

    @classmethod
    def load(cls, context: LoadContext) -> Sounds:
        entry = context.entry
        code = ["*.py"] if read_options(entry, TransformersOptions).trust_remote_code else []
        folder = locate(entry, ("*.safetensors", *code))
        # Located once: asking a hub twice may mean waiting twice.
        found = entry.model_copy(update={"source": Source(folder=folder)})
        return load_sounds(replace(context, entry=found), _auto_class(context, folder), tokenizer=True)

    def preprocess(self, item: Input) -> Prepared[Input]:
        return self._recogniser.prepare(item, self.weights.open(item.audio))

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        return self._recogniser.run(batch, self.progress)

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        return self._recogniser.answer(prepared, raw)


def _auto_class(context: LoadContext, folder: Path) -> str:
    file = folder / "config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    names = [str(name) for name in config.get("architectures") or []]
    if config.get("model_type") == "whisper":
        return "AutoModelForSpeechSeq2Seq"
    if any(name.endswith("ForCTC") for name in names):
        return "AutoModelForCTC"
    what = ", ".join(names) or "model without architectures in its config.json"
    raise load_failed(
        context.entry, f"a {what} is not supported for speech recognition; Whisper and CTC models are"
    )
