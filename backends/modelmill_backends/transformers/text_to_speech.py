"""Text to speech by VITS, including MMS-TTS."""

from __future__ import annotations

import base64
import io
import time
from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import replace
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from modelmill.errors import ErrorCode, ModelmillError, invalid_field
from modelmill_backends.contract import LoadContext, Prepared, Runner
from modelmill_backends.failures import load_failed
from modelmill_backends.shared.audio import require_codecs
from modelmill_backends.shared.transcripts import refuse_config
from modelmill_backends.transformers.weights import Loaded, load_pretrained
from modelmill_tasks.item_warnings import WarningCode, warn
from modelmill_tasks.text_to_speech import Input, Output

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHOWN = 20
"""So many of the characters that are left out are named."""
CHARACTERS_PER_COST = 200
"""So many characters of text count as one item of a batch's capacity."""


class TextToSpeechRunner(Runner[Input, Loaded]):
    """Speaks one text after the other.

    The model draws from the global generator of random numbers, and how much it draws depends on the longest
    text of a pass. So each text has its own pass, and its own seed.
    """

    backend = "transformers"
    task = "text-to-speech"

    @classmethod
    def load(cls, context: LoadContext) -> Loaded:
        entry = context.entry
        require_codecs(entry)
        # Half precision would round the length of each sound, and these models are small.
        options = {"dtype": "float32"} | entry.options
        exact = replace(context, entry=entry.model_copy(update={"options": options}))
        loaded = load_pretrained(exact, "AutoModelForTextToWaveform", tokenizer=True)
        said = _unfit(loaded)
        if said:
            loaded.close()
            raise load_failed(entry, said)
        return loaded

    def group_key(self, item: Input) -> Hashable:
        # forward runs each item in a separate pass.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        speakers = self.weights.model.config.num_speakers
        if (item.config.speaker or 0) >= max(1, speakers):
            what = "has one voice only" if speakers < 2 else f"has the voices 0 to {speakers - 1}"
            raise refuse_config("speaker", f"the model {what}")
        with self.weights.tokenizing:
            spoken, _ = self.weights.tokenizer.prepare_for_tokenization(item.text)
            ids = self.weights.tokenizer(item.text, return_tensors="np")["input_ids"] if spoken else None
        if ids is None:
            raise invalid_field("text", "holds no character that the model can speak")
        if unspoken := self._unspoken(item.text, spoken):
            warn(
                WarningCode.TEXT_UNKNOWN,
                f"The model cannot speak {len(unspoken)} of the text's characters and left them out: "
                f"{' '.join(sorted(set(unspoken))[:SHOWN])}",
            )
        return Prepared(item, ids, cost=1 + len(item.text) // CHARACTERS_PER_COST)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        import numpy as np

        found: list[Any] = []
        for index, prepared in enumerate(batch):
            canceled = self.progress.is_canceled(index)
            found.append(np.zeros(0, np.float32) if canceled else self._spoken(prepared))
            self.progress.report(index, 1, 1, "steps")
        return found

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        import numpy as np

        if not np.isfinite(raw).all():
            raise ModelmillError(
                ErrorCode.INFERENCE_FAILED,
                "The model's sound holds values that are not numbers. This can happen in half "
                "precision: leave options.dtype out of its catalogue entry.",
            )
        rate = int(self.weights.model.config.sampling_rate)
        return Output(
            audio=wav_url(raw, rate),
            sampling_rate=rate,
            duration_s=round(raw.size / rate, 4),
            created=int(time.time()),
        )

    def _unspoken(self, text: str, spoken: str) -> list[str]:
        """The letters and digits of the text that the tokenizer leaves out."""
        tokenizer = self.weights.tokenizer
        if tokenizer.phonemize:
            return []  # it writes digits as words
        left = Counter(spoken.lower())
        missing = []
        for each in text.lower():
            # Letters of other alphabets become Latin ones if the model wants it so.
            if not each.isalnum() or (tokenizer.is_uroman and not each.isascii()):
                continue
            if left[each]:
                left[each] -= 1
            else:
                missing.append(each)
        return missing

    def _spoken(self, prepared: Prepared[Input]) -> NDArray[np.float32]:
        """``[samples]``, −1 to 1."""
        import torch

        model, config = self.weights.model, prepared.item.config
        on_gpu = self.weights.device.kind == "cuda"
        settings = {"speaker_id": config.speaker or 0} if model.config.num_speakers > 1 else {}
        # fork_rng: random numbers of other code stay unchanged.
        with torch.inference_mode(), torch.random.fork_rng(devices=[0] if on_gpu else []):
            torch.manual_seed(config.seed or 0)
            waveform = model(**self.weights.to_device(input_ids=prepared.data), **settings).waveform[0]
        samples: NDArray[np.float32] = waveform.float().cpu().numpy()
        return samples


def wav_url(samples: NDArray[np.float32], rate: int) -> str:
    """Samples from −1 to 1 as a 16-bit WAV in a data URL."""
    import numpy as np
    import soundfile

    clean = np.clip(samples, -1.0, 1.0)
    buffer = io.BytesIO()
    soundfile.write(buffer, clean, rate, format="WAV", subtype="PCM_16")
    return f"data:audio/wav;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _unfit(loaded: Loaded) -> str | None:
    """The reason why a model cannot be used, or None."""
    tokenizer = loaded.tokenizer
    if loaded.model.config.model_type != "vits":
        return f"a {type(loaded.model).__name__} is not supported; VITS and MMS-TTS are"
    if tokenizer.is_uroman and find_spec("uroman") is None:
        return "it needs the Python package uroman to turn texts into Latin letters, which is not installed"
    if tokenizer.phonemize and find_spec("phonemizer") is None:
        return "it needs the Python package phonemizer to turn texts into phonemes, which is not installed"
    return None
