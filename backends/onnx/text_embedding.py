"""Text embedding by BERT-like sentence encoders, without torch and transformers."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from backends.contract import LoadContext, Prepared, Runner
from backends.failures import load_failed, module_missing
from backends.numerics import normalise
from backends.onnx.export import open_exported
from backends.onnx.session import open_session
from backends.options import RunnerOptions, read_options
from backends.sentences import SentenceConfig, pad, pool, read_sentence_config
from backends.source import locate
from modelmill.catalogue import ModelEntry
from tasks.text_embedding import Input, Output

ONNX_FILES = ("onnx/model.onnx", "model.onnx")
TOKEN_OUTPUTS = ("last_hidden_state", "token_embeddings")


@dataclass(frozen=True, slots=True)
class Encoder:
    """A loaded sentence encoder."""

    folder: Path
    """Where it comes from."""
    session: Any
    tokenizer: Any
    config: SentenceConfig
    output: str
    """Name of the session's output that holds a vector a token."""


class TextEmbeddingRunner(Runner[Input, Encoder]):
    """A folder as sentence-transformers saves it: its own ONNX file, or its safetensors exported once.

    ``Prepared.cost`` is the text's share of the model's window, so that a batch may hold many short
    texts or few long ones.
    """

    backend = "onnx"
    task = "text-embedding"

    @classmethod
    def load(cls, context: LoadContext) -> Encoder:
        entry = context.entry
        read_options(entry, RunnerOptions)
        folder = locate(entry, ("*.safetensors", "*model.onnx", "*model.onnx_data"))
        config = read_sentence_config(entry, folder)
        tokenizer = read_tokenizer(entry, folder, config.window)
        file = next((folder / name for name in ONNX_FILES if (folder / name).is_file()), None)
        session = (
            open_session(file, context)
            if file
            else open_exported(context, folder, "backends.onnx.bert:to_export")
        )
        outputs = [output.name for output in session.get_outputs()]
        output = next((name for name in TOKEN_OUTPUTS if name in outputs), None)
        if output is None:
            raise load_failed(entry, f"its ONNX file gives {outputs}, none of which is {TOKEN_OUTPUTS}")
        return Encoder(folder, session, tokenizer, config, output)

    def group_key(self, item: Input) -> Hashable:
        # The prompt is put before the text in preprocess; normalize concerns postprocess only.
        return ()

    def preprocess(self, item: Input) -> Prepared[Input]:
        config = self.weights.config
        ids = self.weights.tokenizer.encode(config.with_prompt(item.text, item.config.prompt_name)).ids
        return Prepared(item, ids, cost=len(ids) / config.window)

    def forward(self, batch: Sequence[Prepared[Input]]) -> Sequence[Any]:
        import numpy as np

        # The id under the padding does not matter: the mask hides it.
        ids, mask = pad([prepared.data for prepared in batch], 0)
        feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        names = {item.name for item in self.weights.session.get_inputs()}
        (hidden,) = self.weights.session.run(
            [self.weights.output], {name: value for name, value in feeds.items() if name in names}
        )
        return list(pool(hidden.astype(np.float32), mask.astype(np.float32), self.weights.config.pooling))

    def postprocess(self, prepared: Prepared[Input], raw: Any) -> Output:
        asked = prepared.item.config.normalize
        vector = normalise(raw) if self.weights.config.should_normalise(asked) else raw
        return Output(embedding=vector.tolist())


def read_tokenizer(entry: ModelEntry, folder: Path, window: int) -> Any:
    """The folder's ``tokenizer.json``, cutting off at ``window`` tokens and padding nothing.

    Raises:
        ModelmillError: ``model_load_failed``: there is none.
    """
    try:
        from tokenizers import Tokenizer
    except ModuleNotFoundError as error:
        raise module_missing(entry, error.name, ("onnx",)) from None
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise load_failed(entry, "its folder holds no tokenizer.json, the only form of tokenizer read here")
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.enable_truncation(window)
    tokenizer.no_padding()
    return tokenizer
