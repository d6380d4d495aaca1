"""BERT-like sentence encoders on ONNX Runtime, without torch and transformers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelmill.catalogue import ModelEntry
from modelmill_backends.contract import Item, LoadContext
from modelmill_backends.failures import load_failed, module_missing
from modelmill_backends.onnx.export import open_exported
from modelmill_backends.onnx.session import open_session
from modelmill_backends.options import read_options
from modelmill_backends.shared.encoders import EncoderOptions, EncoderRunner, Tokens
from modelmill_backends.shared.losses import Read, read_encoding, unknown_id_of
from modelmill_backends.shared.sentences import SentenceConfig, pad, pool, read_sentence_config
from modelmill_backends.source import locate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

ONNX_FILES = ("onnx/model.onnx", "model.onnx")
TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded sentence encoder."""

    folder: Path
    """Where the weights are."""
    session: Any
    tokenizer: Any
    config: SentenceConfig
    output: str
    """Name of the session's output that holds one vector per token."""
    options: EncoderOptions
    unknown_id: int | None

    def tokens(self, text: str) -> Read:
        return read_encoding(self.tokenizer.encode(text), self.unknown_id)

    def vectors(self, rows: Sequence[Tokens]) -> NDArray[np.float32]:
        import numpy as np

        # The id of the padding does not matter: the mask hides it.
        ids, mask = pad(rows, 0)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        names = {item.name for item in self.session.get_inputs()}
        (hidden,) = self.session.run(
            [self.output], {name: value for name, value in feeds.items() if name in names}
        )
        pooled: NDArray[np.float32] = pool(
            hidden.astype(np.float32), mask.astype(np.float32), self.config.pooling
        )
        return self.config.finished(pooled)


class OnnxEncoderRunner(EncoderRunner[Item, Encoder]):
    """A folder as sentence-transformers saves it. Uses its ONNX file, or exports its safetensors once."""

    backend = "onnx"

    @classmethod
    def load(cls, context: LoadContext) -> Encoder:
        entry = context.entry
        options = read_options(entry, EncoderOptions)
        folder = locate(entry, ("*.safetensors", "*model.onnx", "*model.onnx_data"))
        config = read_sentence_config(entry, folder)
        tokenizer = read_tokenizer(entry, folder, config.window)
        file = next((folder / name for name in ONNX_FILES if (folder / name).is_file()), None)
        session = (
            open_session(file, context)
            if file
            else open_exported(context, folder, "modelmill_backends.onnx.bert:to_export")
        )
        outputs = [output.name for output in session.get_outputs()]
        output = next((name for name in TOKEN_OUTPUTS if name in outputs), None)
        if output is None:
            raise load_failed(
                entry, f"its ONNX file has the outputs {outputs}; one of {TOKEN_OUTPUTS} is needed"
            )
        return Encoder(folder, session, tokenizer, config, output, options, unknown_id_of(tokenizer))

    def encoder_of(self, weights: Encoder, context: LoadContext) -> Encoder:
        return weights


def read_tokenizer(entry: ModelEntry, folder: Path, window: int) -> Any:
    """The tokenizer in the folder's ``tokenizer.json``. It cuts off at ``window`` tokens and does not pad.

    Raises:
        ModelmillError: ``model_load_failed``: there is no such file.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise module_missing(entry, error.name, ("onnx",)) from None
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise load_failed(
            entry, "its folder holds no tokenizer.json; this backend reads no other kind of tokenizer"
        )
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(window)
    tokenizer.no_padding()
    # The spelling of a special token in a text stays text.
    tokenizer.encode_special_tokens = True
    return tokenizer
